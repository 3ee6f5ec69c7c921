/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A library that stands before libc's dlsym, as tracing libraries do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

int wrapped;

void *dlsym(void *handle, const char *name)
{
	static void *(*next)(void *, const char *);

	if (!next)
		next = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
	wrapped++;
	return next(handle, name);
}
