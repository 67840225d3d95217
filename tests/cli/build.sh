#!/usr/bin/env bash
# What builds the program: the Makefile on a copy of its inputs.
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
finish
