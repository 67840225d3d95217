# heddle: `make demo` answers from a long document, `make test` runs every test.
# Everything else: make, short, asan, tsan, fuzz, proofs, bench, install, format, check-style, setup, clean.
# make STATIC_DEPS=1: a program that runs where none of its libraries are.
CC ?= gcc
BUILD ?= build
PREFIX ?= /usr/local
include tools/isa_flags.mk

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
OPT ?= -O2 -g
CFLAGS_ALL := -std=gnu17 -D_GNU_SOURCE $(WARN) $(OPT) -ffp-contract=off -fno-math-errno -fPIC -Iinclude -Isrc \
              -I. -I$(BUILD) $(SAN) $(CFLAGS)
DEPS_STATIC := $(if $(STATIC_DEPS),-static)
LDLIBS := $(SAN) $(DEPS_STATIC) -ljansson -lpcre2-8 -lutf8proc -lpthread -lm

ISAS := generic avx2 avx512
SIMD_SRC := $(wildcard src/backend/cpu/simd_*.c)
AMX_SRC := $(wildcard src/backend/cpu/amx_*.c)
LIB_SRC := $(filter-out $(SIMD_SRC) $(AMX_SRC),$(wildcard src/*/*.c src/backend/cpu/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o) $(BUILD)/plans_embedded.o \
           $(foreach isa,$(ISAS),$(SIMD_SRC:%.c=$(BUILD)/%.$(isa).o)) $(AMX_SRC:%.c=$(BUILD)/%.o)
EVAL_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard eval/*.c))
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cli/*.c))
TEST_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/*/test_*.c))
TEST_LIB := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/*.c))
BENCH_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard bench/bench_*.c))
FUZZ_BIN := $(patsubst %.c,$(BUILD)/%,$(wildcard fuzz/fuzz_*.c))

JOBS ?= $(shell nproc)
SUBMAKE := +@$(MAKE) --no-print-directory -j$(JOBS)

.PHONY: all tests demo demo-smollm2 test short proofs bench install asan tsan fuzz format check-style clean setup
all: $(BUILD)/heddle $(BUILD)/libheddle.a $(BUILD)/libheddle.so
tests: all $(TEST_BIN)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -DHDL_TEST_DATA='"$(CURDIR)/tests"' -Itests -c $< -o $@

# Kernels are built at -O3. Under a sanitizer they keep the -O1 of the rest: its checks make -O3 take seven times
# as long to compile, and find no more.
SIMD_OPT := $(if $(SAN),,-O3)
define SIMD_RULE
$$(BUILD)/%.$(1).o: %.c tools/isa_flags.mk
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) $$(SIMD_OPT) $$(ISA_$(1)) -DHDL_ISA=$(1) -DHDL_ISA_$(1)=1 -MMD -MP -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call SIMD_RULE,$(isa))))

$(AMX_SRC:%.c=$(BUILD)/%.o): $(BUILD)/%.o: %.c tools/isa_flags.mk
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) $(SIMD_OPT) $(ISA_amx) -DHDL_ISA_avx512=1 -MMD -MP -c $< -o $@

# A target that keeps a line of text, and is written only when that changes: what depends on it is made anew then.
.PHONY: FORCE
define KEPT_LINE
	@mkdir -p $(@D)
	@echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
endef

# The plan files become part of the program, so that --plan NAME works after installation. Their names are kept, so
# that a file that was removed leaves it.
PLAN_FILES := $(sort $(wildcard plans/*.json))
$(BUILD)/plans.txt: FORCE
	$(call KEPT_LINE,$(PLAN_FILES))
$(BUILD)/plans_embedded.c: $(PLAN_FILES) $(BUILD)/plans.txt tools/embed_plans
	@mkdir -p $(@D)
	tools/embed_plans $(PLAN_FILES) > $@.part && mv $@.part $@
$(BUILD)/plans_embedded.o: $(BUILD)/plans_embedded.c
	$(CC) $(CFLAGS_ALL) -c $< -o $@

$(BUILD)/libheddle.a: $(LIB_OBJ)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/libheddle.so: $(LIB_OBJ) tools/exports.map
	$(CC) -shared -Wl,--version-script=tools/exports.map -o $@ $(LIB_OBJ) $(SAN) -ljansson -lpcre2-8 \
	      -lutf8proc -lpthread -lm
# How the program is linked is kept, so that `make STATIC_DEPS=1` after a plain make links anew.
LINK_LINE = $(CC) -o $(BUILD)/heddle $(CLI_OBJ) $(EVAL_OBJ) $(BUILD)/libheddle.a $(LDLIBS)
$(BUILD)/link.txt: FORCE
	$(call KEPT_LINE,$(LINK_LINE))
$(BUILD)/heddle: $(CLI_OBJ) $(EVAL_OBJ) $(BUILD)/libheddle.a $(BUILD)/link.txt
	$(LINK_LINE)
$(BUILD)/tests/cli/%: $(BUILD)/tests/cli/%.o $(TEST_LIB) $(filter-out %/main.o,$(CLI_OBJ)) $(EVAL_OBJ) $(BUILD)/libheddle.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(TEST_LIB) $(EVAL_OBJ) $(BUILD)/libheddle.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libheddle.a
	$(CC) -o $@ $^ $(LDLIBS)
$(BUILD)/fuzz/%: $(BUILD)/fuzz/%.o $(BUILD)/libheddle.a
	$(CC) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

# ---- what people type -------------------------------------------------------------------------
setup:
	@scripts/setup build test
demo:
	@scripts/demo
demo-smollm2: # the same with a model and a text from the network
	@scripts/demo-smollm2
test: setup
	$(SUBMAKE) tests
	@scripts/run-tests $(STRICT:%=--strict) --build $(BUILD)
short: # the tests that need no model
	$(SUBMAKE) tests
	@scripts/run-tests $(STRICT:%=--strict) --short --build $(BUILD)
asan: # the short tests under the address and undefined-behaviour sanitizers
	$(SUBMAKE) tests BUILD=$(BUILD)/asan OPT="-O1 -g1 -fno-omit-frame-pointer" \
	    SAN="-fsanitize=address,undefined -fno-sanitize-recover=all"
	@scripts/run-tests $(STRICT:%=--strict) --short --build $(BUILD)/asan --jobs 2
tsan: # the thread pool and the laws of sessions under the thread sanitizer
	$(SUBMAKE) $(BUILD)/tsan/tests/base/test_pool_races $(BUILD)/tsan/tests/base/test_pool $(BUILD)/tsan/tests/engine/test_session BUILD=$(BUILD)/tsan \
	    OPT="-O1 -g" SAN="-fsanitize=thread"
	TSAN_OPTIONS=die_after_fork=0 $(BUILD)/tsan/tests/base/test_pool_races
	$(BUILD)/tsan/tests/base/test_pool
	$(BUILD)/tsan/tests/engine/test_session
FUZZ_SECONDS ?= 60
fuzz: # each target for FUZZ_SECONDS, from the corpus in fuzz/corpus
	$(SUBMAKE) fuzz-targets CC=clang BUILD=$(BUILD)/fuzz OPT="-O1 -g" \
	    SAN="-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all"
	@scripts/fuzz $(BUILD)/fuzz $(FUZZ_SECONDS)
fuzz-targets: $(FUZZ_BIN)
BENCH_DEPTHS ?= 0,4096,16384
bench: all $(BENCH_BIN)
	$(BUILD)/heddle bench depth -m "$$(scripts/get-model)" --depths $(BENCH_DEPTHS) --csv $(BUILD)/bench-depth.csv
proofs: # hours; goes on where it was stopped. Results: bench/results
	$(SUBMAKE) tests
	@scripts/proofs
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include
	install $(BUILD)/heddle $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(BUILD)/libheddle.a $(BUILD)/libheddle.so $(DESTDIR)$(PREFIX)/lib/
	install -m 644 include/heddle.h include/heddle_status.h $(DESTDIR)$(PREFIX)/include/
	install -d $(DESTDIR)$(PREFIX)/lib/pkgconfig
	sed -e 's|@PREFIX@|$(PREFIX)|' -e "s|@VERSION@|$$($(BUILD)/heddle --version | cut -d' ' -f2)|" tools/heddle.pc.in \
	    >$(DESTDIR)$(PREFIX)/lib/pkgconfig/heddle.pc
format:
	clang-format -i $$(git ls-files '*.c' '*.h')
check-style: all
	@tools/check_includes && tools/check_words && tools/check_size && tools/check_format && \
	    tools/check_symbols $(BUILD)
clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
