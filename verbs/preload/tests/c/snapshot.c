/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Holds one registration and has deregistered another on the fake device. Then it sends itself the
 * signal SIGNAL, and waits until the file FILE has a text: snapshot SIGNAL FILE. With a third
 * argument, the program handles the signal itself.
 */
#define _GNU_SOURCE
#include <infiniband/verbs.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

#undef ibv_reg_mr

#define PAGE 4096

static volatile sig_atomic_t handled;

static void handle(int signal)
{
	handled = signal;
}

int main(int argc, char **argv)
{
	CHECK(argc >= 3);
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = aligned_alloc(PAGE, 4 * PAGE);
	int number = atoi(argv[1]);

	memset(memory, 1, 4 * PAGE);
	if (argc > 3)
		CHECK(signal(number, handle) == SIG_DFL);
	struct ibv_mr *held = ibv_reg_mr(pd, memory, PAGE, IBV_ACCESS_LOCAL_WRITE);
	struct ibv_mr *idle = ibv_reg_mr(pd, memory + 2 * PAGE, PAGE, 0);

	CHECK(held && idle && ibv_dereg_mr(idle) == 0);
	CHECK(raise(number) == 0);
	CHECK(argc == 3 || handled == number);
	struct stat file = { 0 };

	for (int i = 0; argc == 3 && file.st_size == 0; i++) {
		CHECK(i < 20000);
		usleep(1000);
		stat(argv[2], &file);
	}
	puts("ok");
	return 0;
}
