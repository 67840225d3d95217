/* quant.c - the plain decoders and encoders of the block formats drawn in quant.h.
 *
 * Normative and slow on purpose: kernels are tested against these. Each format is one function
 * per direction that handles one block; a row is a loop over blocks. Fields are read and written
 * with memcpy because a block's address has no alignment. The encoders of the 32-element formats
 * follow ggml's reference arithmetic bit for bit (scale from the extreme value, in f32, before it
 * is rounded to f16), so that files made here and there are the same. */
#include "tensor/quant.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 32, SUPER = 256, N_SUB = SUPER / BLOCK };

static float get_f16(const uint8_t *src)
{
    uint16_t h;
    memcpy(&h, src, sizeof h);
    return hdl_f16_to_f32(h);
}

/* Stores f as f16 and gives back the value that a decoder will see. */
static float put_f16(uint8_t *dst, float f)
{
    uint16_t h = hdl_f32_to_f16(f);
    memcpy(dst, &h, sizeof h);
    return hdl_f16_to_f32(h);
}

static int clamp_int(float x, int min, int max)
{
    if (!(x > (float)min)) return min; /* NaN too */
    return x < (float)max ? (int)x : max;
}

static float reciprocal(float x)
{
    return x != 0 ? 1.0f / x : 0.0f;
}

/* --- plain types ------------------------------------------------------------------------- */

static void decode_f32(const uint8_t *src, float *x)
{
    memcpy(x, src, sizeof *x);
}

static void decode_f16(const uint8_t *src, float *x)
{
    *x = get_f16(src);
}

static void decode_bf16(const uint8_t *src, float *x)
{
    uint16_t h;
    memcpy(&h, src, sizeof h);
    *x = hdl_bf16_to_f32(h);
}

static void encode_f32(const float *x, uint8_t *dst)
{
    memcpy(dst, x, sizeof *x);
}

static void encode_f16(const float *x, uint8_t *dst)
{
    put_f16(dst, *x);
}

static void encode_bf16(const float *x, uint8_t *dst)
{
    uint16_t h = hdl_f32_to_bf16(*x);
    memcpy(dst, &h, sizeof h);
}

/* --- blocks of 32 ------------------------------------------------------------------------ */

static void decode_q8_0(const uint8_t *src, float *x)
{
    float d = get_f16(src);
    for (int i = 0; i < BLOCK; i++) x[i] = d * (float)(int8_t)src[2 + i];
}

static void encode_q8_0(const float *x, uint8_t *dst)
{
    float amax = 0;
    for (int i = 0; i < BLOCK; i++) amax = fmaxf(amax, fabsf(x[i]));
    float d = amax / 127.0f, inverse = reciprocal(d);
    put_f16(dst, d);
    for (int i = 0; i < BLOCK; i++) {
        float q = roundf(x[i] * inverse);
        dst[2 + i] = (uint8_t)(int8_t)clamp_int(q, -127, 127);
    }
}

/* The 4- and 5-bit formats differ in where their parts lie, in the zero point and in having a
 * minimum or a fifth bit; the rest is shared. */
typedef struct nibble_layout {
    int min_at, high_at, low_at; /* byte offsets in the block; -1 = the part is absent */
    int zero;                    /* subtracted from q where there is no minimum */
    int q_max;
} nibble_layout;

static const nibble_layout q4_0 = {-1, -1, 2, 8, 15}, q4_1 = {2, -1, 4, 0, 15};
static const nibble_layout q5_0 = {-1, 2, 6, 16, 31}, q5_1 = {2, 4, 8, 0, 31};

static void decode_nibbles(const nibble_layout *layout, const uint8_t *src, float *x)
{
    float d = get_f16(src), min = layout->min_at >= 0 ? get_f16(src + layout->min_at) : 0;
    uint32_t high = 0;
    if (layout->high_at >= 0) memcpy(&high, src + layout->high_at, sizeof high);
    const uint8_t *low = src + layout->low_at;
    for (int i = 0; i < BLOCK; i++) {
        int q = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
        q |= (int)(high >> i & 1) << 4;
        x[i] = layout->min_at >= 0 ? d * (float)q + min : d * (float)(q - layout->zero);
    }
}

static void encode_nibbles(const nibble_layout *layout, const float *x, uint8_t *dst)
{
    float min = INFINITY, max = -INFINITY, extreme = 0;
    for (int i = 0; i < BLOCK; i++) {
        min = fminf(min, x[i]);
        max = fmaxf(max, x[i]);
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i]; /* the first of equals */
    }
    bool has_min = layout->min_at >= 0;
    float d = has_min ? (max - min) / (float)layout->q_max : extreme / (float)-layout->zero;
    float inverse = reciprocal(d);
    put_f16(dst, d);
    if (has_min) put_f16(dst + layout->min_at, min);
    uint32_t high = 0;
    uint8_t *low = dst + layout->low_at;
    memset(low, 0, 16);
    for (int i = 0; i < BLOCK; i++) {
        float level = has_min ? (x[i] - min) * inverse + 0.5f : x[i] * inverse + ((float)layout->zero + 0.5f);
        int q = clamp_int(level, 0, layout->q_max);
        low[i & 15] |= (uint8_t)((q & 15) << (i < 16 ? 0 : 4));
        high |= (uint32_t)(q >> 4) << i;
    }
    if (layout->high_at >= 0) memcpy(dst + layout->high_at, &high, sizeof high);
}

/* --- super-blocks of 256 ----------------------------------------------------------------- */

static void unpack_scales(const uint8_t s[12], int scale[N_SUB], int min[N_SUB])
{
    for (int j = 0; j < 4; j++) {
        scale[j] = s[j] & 63;
        min[j] = s[j + 4] & 63;
        scale[j + 4] = (s[j + 8] & 15) | s[j] >> 6 << 4;
        min[j + 4] = s[j + 8] >> 4 | s[j + 4] >> 6 << 4;
    }
}

static void pack_scales(uint8_t s[12], const int scale[N_SUB], const int min[N_SUB])
{
    for (int j = 0; j < 4; j++) {
        s[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
        s[j + 4] = (uint8_t)(min[j] | min[j + 4] >> 4 << 6);
        s[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
}

/* q4_K (high = NULL) and q5_K: d, dmin, scales[12], then `high`, then the nibbles. */
static void decode_k45(const uint8_t *src, const uint8_t *high, const uint8_t *low, float *x)
{
    int scale[N_SUB], min[N_SUB];
    float d = get_f16(src), dmin = get_f16(src + 2);
    unpack_scales(src + 4, scale, min);
    for (int j = 0; j < N_SUB; j++) {
        float step = d * (float)scale[j], offset = dmin * (float)min[j];
        for (int i = 0; i < BLOCK; i++) {
            int q = low[32 * (j / 2) + i] >> (j % 2 ? 4 : 0) & 15;
            if (high) q |= (high[i] >> j & 1) << 4;
            x[BLOCK * j + i] = step * (float)q - offset;
        }
    }
}

/* Plain fit: each sub-block spans [min(0, smallest), largest]; its scale and minimum are rounded
 * to 6 bits of the super-block's, then each element to the nearest level. */
static void encode_k45(const float *x, uint8_t *dst, uint8_t *high, uint8_t *low, int q_max)
{
    float step[N_SUB], offset[N_SUB], step_max = 0, offset_max = 0;
    for (int j = 0; j < N_SUB; j++) {
        float smallest = 0, largest = 0;
        for (int i = 0; i < BLOCK; i++) {
            smallest = fminf(smallest, x[BLOCK * j + i]);
            largest = fmaxf(largest, x[BLOCK * j + i]);
        }
        step[j] = (largest - smallest) / (float)q_max;
        offset[j] = -smallest;
        step_max = fmaxf(step_max, step[j]);
        offset_max = fmaxf(offset_max, offset[j]);
    }
    float d = put_f16(dst, step_max / 63.0f), dmin = put_f16(dst + 2, offset_max / 63.0f);
    int scale[N_SUB], min[N_SUB];
    memset(low, 0, SUPER / 2);
    if (high) memset(high, 0, BLOCK);
    for (int j = 0; j < N_SUB; j++) {
        scale[j] = clamp_int(roundf(step[j] * reciprocal(d)), 0, 63);
        min[j] = clamp_int(roundf(offset[j] * reciprocal(dmin)), 0, 63);
        float inverse = reciprocal(d * (float)scale[j]), base = dmin * (float)min[j];
        for (int i = 0; i < BLOCK; i++) {
            int q = clamp_int(roundf((x[BLOCK * j + i] + base) * inverse), 0, q_max);
            low[32 * (j / 2) + i] |= (uint8_t)((q & 15) << (j % 2 ? 4 : 0));
            if (high) high[i] |= (uint8_t)(q >> 4 << j);
        }
    }
    pack_scales(dst + 4, scale, min);
}

static void decode_q4_k(const uint8_t *src, float *x)
{
    decode_k45(src, NULL, src + 16, x);
}

static void decode_q5_k(const uint8_t *src, float *x)
{
    decode_k45(src, src + 16, src + 48, x);
}

static void encode_q4_k(const float *x, uint8_t *dst)
{
    encode_k45(x, dst, NULL, dst + 16, 15);
}

static void encode_q5_k(const float *x, uint8_t *dst)
{
    encode_k45(x, dst, dst + 16, dst + 48, 31);
}

enum { Q6_HIGH_AT = 128, Q6_SCALES_AT = 192, Q6_D_AT = 208, Q6_GROUP = 16 };

/* Element e of q6_K: half h = e / 128, quarter k = e / 32 % 4, i = e % 32. */
static void decode_q6_k(const uint8_t *src, float *x)
{
    float d = get_f16(src + Q6_D_AT);
    for (int e = 0; e < SUPER; e++) {
        int half = e / 128, quarter = e / 32 % 4, i = e % 32;
        int low = src[64 * half + 32 * (quarter % 2) + i] >> (quarter < 2 ? 0 : 4) & 15;
        int high = src[Q6_HIGH_AT + 32 * half + i] >> 2 * quarter & 3;
        float step = d * (float)(int8_t)src[Q6_SCALES_AT + e / Q6_GROUP];
        x[e] = step * (float)((low | high << 4) - 32);
    }
}

static void encode_q6_k(const float *x, uint8_t *dst)
{
    float step[SUPER / Q6_GROUP], step_max = 0;
    for (int g = 0; g < SUPER / Q6_GROUP; g++) {
        float amax = 0;
        for (int i = 0; i < Q6_GROUP; i++) amax = fmaxf(amax, fabsf(x[Q6_GROUP * g + i]));
        step[g] = amax / 31.0f;
        step_max = fmaxf(step_max, step[g]);
    }
    float d = put_f16(dst + Q6_D_AT, step_max / 127.0f);
    memset(dst, 0, Q6_SCALES_AT);
    for (int e = 0; e < SUPER; e++) {
        int half = e / 128, quarter = e / 32 % 4, i = e % 32;
        int scale = clamp_int(roundf(step[e / Q6_GROUP] * reciprocal(d)), 0, 127);
        int q = clamp_int(roundf(x[e] * reciprocal(d * (float)scale)), -32, 31) + 32;
        dst[64 * half + 32 * (quarter % 2) + i] |= (uint8_t)((q & 15) << (quarter < 2 ? 0 : 4));
        dst[Q6_HIGH_AT + 32 * half + i] |= (uint8_t)(q >> 4 << 2 * quarter);
        dst[Q6_SCALES_AT + e / Q6_GROUP] = (uint8_t)scale;
    }
}

/* --- rows -------------------------------------------------------------------------------- */

typedef struct codec { /* functions of one block, or a layout for the nibble ones */
    void (*decode)(const uint8_t *src, float *x);
    void (*encode)(const float *x, uint8_t *dst);
    const nibble_layout *layout;
} codec;

static const codec codecs[HDL_N_DTYPES] = {
    [HDL_F32] = {decode_f32, encode_f32, NULL},
    [HDL_F16] = {decode_f16, encode_f16, NULL},
    [HDL_BF16] = {decode_bf16, encode_bf16, NULL},
    [HDL_Q8_0] = {decode_q8_0, encode_q8_0, NULL},
    [HDL_Q4_0] = {NULL, NULL, &q4_0},
    [HDL_Q4_1] = {NULL, NULL, &q4_1},
    [HDL_Q5_0] = {NULL, NULL, &q5_0},
    [HDL_Q5_1] = {NULL, NULL, &q5_1},
    [HDL_Q4_K] = {decode_q4_k, encode_q4_k, NULL},
    [HDL_Q5_K] = {decode_q5_k, encode_q5_k, NULL},
    [HDL_Q6_K] = {decode_q6_k, encode_q6_k, NULL},
};

void hdl_dequant_row(hdl_dtype dtype, const void *src, float *dst, int64_t n)
{
    const hdl_dtype_traits *t = hdl_dtype_of(dtype);
    const codec *c = &codecs[dtype];
    HDL_ASSERT((c->decode || c->layout) && n % t->block_elems == 0);
    const uint8_t *block = src;
    for (int64_t i = 0; i < n; i += t->block_elems, block += t->block_bytes) {
        if (c->layout)
            decode_nibbles(c->layout, block, dst + i);
        else
            c->decode(block, dst + i);
    }
}

void hdl_quant_row(hdl_dtype dtype, const float *src, void *dst, int64_t n)
{
    const hdl_dtype_traits *t = hdl_dtype_of(dtype);
    const codec *c = &codecs[dtype];
    HDL_ASSERT((c->encode || c->layout) && n % t->block_elems == 0);
    uint8_t *block = dst;
    for (int64_t i = 0; i < n; i += t->block_elems, block += t->block_bytes) {
        if (c->layout)
            encode_nibbles(c->layout, src + i, block);
        else
            c->encode(src + i, block);
    }
}
