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
try() { # name, mode, what must be said
  for delay in 0 100; do
    status=0
    STANDIN_DELAY_US=$delay STANDIN_TIMEOUT_S=2 check "$1.cubin" "$2" few > "$1.log" 2>&1 || status=$?
    [ "$status" = 0 ] || break
  done
  said=$(grep -m1 -E 'standin: error|FAIL .*are wrong' "$1.log")
  verdict="NOT CAUGHT"
  case $said in *"$3"*) [ "$status" = 0 ] || verdict=caught ;; esac
  echo "$1: $verdict, status $status, wanted '$3': $said" > "$1.verdict"
}
rm -f ./*.verdict
running=0
while read -r name kind said; do
  try "$name" "$kind" "$said" &
  running=$((running + 1))
  [ $((running % 8)) -ne 0 ] || wait
done < mutants.txt
wait
cat ./*.verdict
caught=$(grep -l ': caught,' ./*.verdict | wc -l) all=$(wc -l < mutants.txt)
echo "$caught of $all mutants were caught"
[ "$caught" -eq "$all" ]
