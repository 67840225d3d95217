/* sanitized.h - under the address sanitizer everything takes ten times as long, and what it looks for does not hang on how
 * often it is done: long tables of cases are thinned there. */
#ifndef HDL_TEST_SANITIZED_H
#define HDL_TEST_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__)
enum { IS_SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { IS_SANITIZED = 1 };
#else
enum { IS_SANITIZED = 0 };
#endif
#else
enum { IS_SANITIZED = 0 };
#endif

#endif
