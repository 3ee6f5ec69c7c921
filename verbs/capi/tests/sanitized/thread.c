/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * rustc's ThreadSanitizer calls these functions, and the runtime of GCC 12 does not have them. It
 * watches the functions of libc.
 */
#include <string.h>

void *__tsan_memcpy(void *to, const void *from, size_t length);
void *__tsan_memmove(void *to, const void *from, size_t length);
void *__tsan_memset(void *to, int value, size_t length);

void *__tsan_memcpy(void *to, const void *from, size_t length)
{
	return memcpy(to, from, length);
}

void *__tsan_memmove(void *to, const void *from, size_t length)
{
	return memmove(to, from, length);
}

void *__tsan_memset(void *to, int value, size_t length)
{
	return memset(to, value, length);
}
