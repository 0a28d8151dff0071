#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run.sh FOLDER, on Hopper: check.py of the right kernels must pass, and of every mutant of mutants.py fail. The folder has
# their cubins, prepare.cubin and standin_driver.so. Ends with how many were caught.
cd "$1" || exit 1
here=$OLDPWD
check() { # name, GEMM's cubin, prepare's
  LD_PRELOAD=$PWD/standin_driver.so STANDIN_CALLERS=_ctypes,python3 STANDIN_TIMEOUT_S=3 \
    timeout 100 python3 "${CHECK:-$here/check.py}" "$2" "$3" > "$1.log" 2>&1
  echo "$?" > "$1.rc"
}
check right right.cubin prepare.cubin
cat right.log
[ "$(cat right.rc)" = 0 ] || exit 1
for cubin in *.cubin; do
  name=${cubin%.cubin}
  case $name in
    right | prepare) ;;
    *-prepare) check "$name" right.cubin "$cubin" & ;;
    *) check "$name" "$cubin" prepare.cubin & ;;
  esac
done
wait
caught=0 all=0
for rc in *.rc; do
  name=${rc%.rc}
  [ "$name" = right ] && continue
  all=$((all + 1))
  if [ "$(cat "$rc")" = 0 ]; then
    echo "$name: NOT CAUGHT"
  else
    caught=$((caught + 1))
    echo "$name: caught, status $(cat "$rc"): $(grep -h -m1 -E 'BAD|standin: error|is [0-9]+; it must be 0|Error' "$name.log")"
  fi
done
echo "$caught of $all mutants were caught"
[ "$caught" = "$all" ]
