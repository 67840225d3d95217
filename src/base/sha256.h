/* sha256.h - SHA-256 (FIPS 180-4) of bytes in memory: to say which file another file was made for. */
#ifndef HDL_SHA256_H
#define HDL_SHA256_H

#include "base/base.h"

enum { HDL_SHA256_HEX = 65 };
/* hex: lower case, NUL-terminated. */
void hdl_sha256(const uint8_t *data, int64_t n_bytes, char hex[HDL_SHA256_HEX]);

#endif
