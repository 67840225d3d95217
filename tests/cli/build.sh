#!/usr/bin/env bash
# What builds the program: the Makefile on a copy of its inputs, scripts/setup on a system that is made up.
. "$(dirname "$0")/tap.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)
unset MAKEFLAGS MFLAGS MAKELEVEL
code=0

mkdir "$work/tree"
cp -r "$top/Makefile" "$top/tools" "$top/plans" "$work/tree"
embedded() { # PATTERN: the plan files are embedded anew, where need be; whether one of that name is among them
    make -s -C "$work/tree" BUILD=b b/plans_embedded.c >"$work/out" 2>"$work/err" && grep -q "{\"$1\"," "$work/tree/b/plans_embedded.c"
}
cp "$top/plans/anchor.json" "$work/tree/plans/mine.json"
embedded mine
result "a plan file of one's own is in the program" $?
rm "$work/tree/plans/mine.json"
embedded anchor && ! embedded mine
result "one that was removed is not" $?
before=$(stat -c %y "$work/tree/b/plans_embedded.c")
embedded anchor && [ "$(stat -c %y "$work/tree/b/plans_embedded.c")" = "$before" ]
result "where nothing changed nothing is made" $?

# A system whose python3 is its user's own: packages are installed, and it has them not.
mkdir "$work/bin"
printf '#!/bin/sh\nexit 1\n' >"$work/bin/python3"
printf '#!/bin/sh\nexit 0\n' | tee "$work/bin/apt-get" >"$work/bin/apt-cache"
printf '#!/bin/sh\nexec "$@"\n' >"$work/bin/sudo"
chmod +x "$work/bin"/*
PATH=$work/bin:$PATH "$top/scripts/setup" ci >"$work/out" 2>"$work/err"
code=$?
[ "$code" = 1 ] && grep -q '^setup: installed, yet not found: .*python3-numpy' "$work/err" &&
    grep -q "^setup: python3 is $work/bin/python3 here, and Debian's packages are for /usr/bin/python3: " "$work/err"
result "set-up says whose python3 lacks a package" $?
finish
