# heddle: `make demo` answers from a long document, `make test` runs every test.
# Everything else: make, install, bench, proofs, asan, fuzz, format, check-style, clean.
CC ?= gcc
BUILD ?= build
PREFIX ?= /usr/local
include tools/isa_flags.mk

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
OPT ?= -O2 -g
CFLAGS_ALL := -std=gnu17 $(WARN) $(OPT) -ffp-contract=off -fno-math-errno -fopenmp -fPIC -Iinclude -Isrc \
              -I$(BUILD) $(SAN) $(CFLAGS)
DEPS_STATIC := $(if $(STATIC_DEPS),-static)
LDLIBS := $(SAN) -fopenmp $(DEPS_STATIC) -ljansson -lpcre2-8 -lutf8proc -lpthread -lm

ISAS := generic avx2 avx512
SIMD_SRC := $(wildcard src/backend/cpu/simd_*.c)
LIB_SRC := $(filter-out $(SIMD_SRC),$(wildcard src/*/*.c src/backend/cpu/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o) $(BUILD)/plans_embedded.o \
           $(foreach isa,$(ISAS),$(SIMD_SRC:%.c=$(BUILD)/%.$(isa).o))
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cli/*.c))
TEST_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/*/test_*.c))
TEST_LIB := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/*.c))
BENCH_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard bench/bench_*.c))
FUZZ_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard fuzz/fuzz_*.c))

.PHONY: all lib demo test short proofs bench install asan fuzz format check-style clean setup
all: $(BUILD)/heddle $(BUILD)/libheddle.a $(BUILD)/libheddle.so

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -DHDL_TEST_DATA='"$(CURDIR)/tests"' -Itests -c $< -o $@

define SIMD_RULE
$$(BUILD)/%.$(1).o: %.c tools/isa_flags.mk
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) -O3 $$(ISA_$(1)) -DHDL_ISA=$(1) -DHDL_ISA_$(1)=1 -MMD -MP -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call SIMD_RULE,$(isa))))

# The plan files become part of the program, so that --plan NAME works after installation.
$(BUILD)/plans_embedded.c: $(wildcard plans/*.json) tools/embed_plans
	@mkdir -p $(@D)
	tools/embed_plans plans/*.json > $@.part && mv $@.part $@
$(BUILD)/plans_embedded.o: $(BUILD)/plans_embedded.c
	$(CC) $(CFLAGS_ALL) -c $< -o $@

$(BUILD)/libheddle.a: $(LIB_OBJ)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/libheddle.so: $(LIB_OBJ) tools/exports.map
	$(CC) -shared -Wl,--version-script=tools/exports.map -o $@ $(LIB_OBJ) $(SAN) -fopenmp -ljansson -lpcre2-8 \
	      -lutf8proc -lpthread -lm
$(BUILD)/heddle: $(CLI_OBJ) $(BUILD)/libheddle.a
	$(CC) -o $@ $^ $(LDLIBS)
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_LIB) $(BUILD)/libheddle.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libheddle.a
	$(CC) -o $@ $^ $(LDLIBS)
$(BUILD)/fuzz/%: $(BUILD)/fuzz/%.o $(BUILD)/libheddle.a
	$(CC) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
