#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run.sh FOLDER, on Hopper: check of the right kernels must pass in every order of execution, and fail of every mutant of
# mutants.txt as that says. The folder has check, standin_driver.so, right.cubin and the mutants' cubins.
cd "$1" || exit 1
check() { # cubin, mode, more arguments
  LD_PRELOAD=$PWD/standin_driver.so STANDIN_CALLERS=check timeout 60 ./check "$@"
}
for kind in nvfp4 bf16; do
  for order in late early mixed; do
    echo "$kind, $order:"
    STANDIN_MODE=$order check right.cubin $kind 2>&1 || exit 1
  done
  echo "$kind, mixed with delays:"
  STANDIN_MODE=mixed STANDIN_DELAY_US=200 check right.cubin $kind 2>&1 || exit 1
done
caught=0 all=0
while read -r name kind found; do
  all=$((all + 1)) status=0
  for delay in 0 100; do
    STANDIN_DELAY_US=$delay STANDIN_TIMEOUT_S=2 check "$name.cubin" "$kind" few > "$name.log" 2>&1 || status=$?
    [ "$status" = 0 ] || break
  done
  line=$(grep -m1 -E 'standin: error|FAIL .*are wrong' "$name.log")
  case $line in
    *"$found"*) [ "$status" = 0 ] || caught=$((caught + 1)) ;;
  esac
  echo "$name: status $status, wanted '$found': $line"
done < mutants.txt
echo "$caught of $all mutants were caught"
[ "$caught" = "$all" ]
