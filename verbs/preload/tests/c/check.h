/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Assertions of the programs that need no device. The program defines _GNU_SOURCE. */
#pragma once

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

/* Returns the file that defines the function. */
static inline const char *home(void *function)
{
	Dl_info info;

	CHECK(function && dladdr(function, &info));
	return strrchr(info.dli_fname, '/') + 1;
}
