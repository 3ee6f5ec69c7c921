/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A library that looks symbols up with RTLD_NEXT. */
#define _GNU_SOURCE
#include <dlfcn.h>

/*
 * The result depends on the caller, so libc must see this library as the caller. No library after
 * this one has the symbol.
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
