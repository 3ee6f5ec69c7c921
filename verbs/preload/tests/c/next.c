/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A library that looks symbols up with RTLD_NEXT. */
#define _GNU_SOURCE
#include <dlfcn.h>

/*
 * With RTLD_NEXT the search starts after the library that calls dlsym. No library after this one
 * has this symbol. So the result is null, unless libc takes the shim for the caller.
 */
void *next_own_name(void)
{
	void *found = dlsym(RTLD_NEXT, "next_own_name");

	return found;
}

void *next_malloc(void)
{
	void *found = dlsym(RTLD_NEXT, "malloc");

	return found;
}
