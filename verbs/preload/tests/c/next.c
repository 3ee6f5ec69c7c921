/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A library that asks for what comes after it. */
#define _GNU_SOURCE
#include <dlfcn.h>

/* The answer depends on who asks: it has to be this library that is seen to. */
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
