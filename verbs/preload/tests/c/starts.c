/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A program that uses no verbs. It is built with sanitizers, and runs beside other libraries. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *fill(void *memory)
{
	return memset(memory, 1, 100);
}

int main(void)
{
	char *memory = malloc(100);
	pthread_t thread;

	if (pthread_create(&thread, NULL, fill, memory) || pthread_join(thread, NULL))
		return 1;
	if (!dlsym(RTLD_DEFAULT, "malloc") || dlsym(RTLD_DEFAULT, "ibv_reg_mr_ex"))
		return 2;
	puts(memory[99] == 1 ? "started" : "wrong");
	free(memory);
	return 0;
}
