#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run.sh FOLDER, on Hopper: check of the right kernels must pass in every order of execution, and fail of every mutant of
# mutants.txt as that says. The folder has check, standin_driver.so, right.cubin and the mutants' cubins. Eight at a time.
cd "$1" || exit 1
rm -f ./*.verdict
check() { # cubin, mode, more arguments
  LD_PRELOAD=$PWD/standin_driver.so STANDIN_CALLERS=check timeout 40 ./check "$@"
}
right() { # mode, order, delay
  STANDIN_MODE=$2 STANDIN_DELAY_US=$3 check right.cubin "$1" > "right-$1-$2-$3.log" 2>&1 && verdict=right || verdict=WRONG
  echo "$1, $2, delays of $3 us: $verdict, $(grep -c '^PASS .*:' "right-$1-$2-$3.log") GEMMs" | tee "right-$1-$2-$3.verdict"
}
mutant() { # name, mode, what must be said
  for slow in "0 0" "100 0" "20000 1"; do # delays of any warp, or always of one
    status=0
    STANDIN_DELAY_US=${slow% *} STANDIN_SLOW_WARP=${slow#* } STANDIN_TIMEOUT_S=4 \
      check "$1.cubin" "$2" few > "$1.log" 2>&1 || status=$?
    [ "$status" = 0 ] || break
  done
  said=$(grep -m1 -E 'standin: error|FAIL .*are wrong' "$1.log")
  [ -n "$said" ] || said=$(tail -n 1 "$1.log")
  verdict="NOT CAUGHT"
  case $said in *"$3"*) [ "$status" = 0 ] || verdict=caught ;; esac
  echo "$1: $verdict, status $status, wanted '$3': $said" | tee "$1.verdict"
}
running=0
start() {
  "$@" &
  running=$((running + 1))
  [ $((running % 8)) -ne 0 ] || wait
}
for kind in nvfp4 bf16; do
  for order in late early mixed; do start right $kind $order 0; done
  start right $kind mixed 200
done
while read -r name kind said; do start mutant "$name" "$kind" "$said"; done < mutants.txt
wait
caught=$(grep -l ': caught,' ./*.verdict | wc -l) all=$(wc -l < mutants.txt)
echo "$caught of $all mutants were caught, $(grep -l ': right,' ./right-*.verdict | wc -l) of 8 runs of the right kernels passed"
[ "$caught" -eq "$all" ] && ! grep -q WRONG ./right-*.verdict
