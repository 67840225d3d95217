# The compiler flags of each instruction set. No -march=native, no fast-math, and no implicit
# contraction: every fused multiply-add is written out, so that gcc and clang give the same bits.
ISA_generic :=
ISA_avx2 := -mavx2 -mfma -mf16c
ISA_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c
ISA_amx := $(ISA_avx512) -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16
