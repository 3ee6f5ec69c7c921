/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tests threads that end early, and signals. A thread that is cancelled leaves nothing locked or
 * leaked, and its guards can be put by others. Signals interrupt no call, and a handler may leave
 * the program's own code by siglongjmp.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

static struct regcache *cache;
static int zero;

/* A device whose callbacks reach cancellation points, as libibverbs does with some devices. */
static int reg(void *user, void *addr, size_t length, unsigned int access,
	       struct regcache_registration *made)
{
	char byte;

	IS(read(zero, &byte, 1), 1);
	pthread_testcancel();
	return fake_reg(user, addr, length, access, made);
}

static int dereg(void *user, void *registration)
{
	poll(NULL, 0, 0);
	pthread_testcancel();
	return fake_dereg(user, registration);
}

static sem_t begun;

static void *look_up_for_ever(void *unused)
{
	for (int i = 0;; i++) {
		struct regcache_mr mr;
		char *memory = pages(2);

		IS(regcache_get(cache, memory, 2 * PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
		if (i % 3 == 0)
			IS(regcache_get_unretained(cache, memory, PAGE, 1, &mr) ||
			   regcache_put(mr.guard), 0);
		if (i % 5 == 0)
			IS(regcache_flush(cache, 0, NULL), 0);
		/* munmap is no cancellation point. */
		munmap(memory, 2 * PAGE);
		if (i == 0)
			sem_post(&begun);
		pthread_testcancel();
	}
	return unused;
}

static void cancelled_threads_leave_nothing(int count)
{
	for (int i = 0; i < count; i++) {
		pthread_t thread;
		void *result;

		IS(pthread_create(&thread, NULL, look_up_for_ever, NULL), 0);
		/* Half of the threads are cancelled before their first call. */
		if (i % 2)
			sem_wait(&begun);
		IS(pthread_cancel(thread), 0);
		IS(pthread_join(thread, &result), 0);
		IS(result == PTHREAD_CANCELED, 1);
		while (sem_trywait(&begun) == 0)
			;
	}
}

static struct regcache_guard *left;

static void *end_with_a_guard(void *memory)
{
	struct regcache_mr mr;

	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	__atomic_store_n(&left, mr.guard, __ATOMIC_RELEASE);
	for (;;)
		pause();
	return NULL;
}

static void guards_outlive_their_threads(void)
{
	char *memory = pages(1);

	for (int i = 0; i < 20; i++) {
		pthread_t thread;

		left = NULL;
		IS(pthread_create(&thread, NULL, end_with_a_guard, memory), 0);
		while (!__atomic_load_n(&left, __ATOMIC_ACQUIRE))
			usleep(100);
		IS(pthread_cancel(thread), 0);
		IS(pthread_join(thread, NULL), 0);
		FAILS(regcache_destroy(cache), EBUSY, ": 1");
		IS(regcache_put(left), 0);
		FAILS(regcache_put(left), EBADF, "put already");
	}
	munmap(memory, PAGE);
}

static atomic_int signals;
static sigjmp_buf out;
static volatile sig_atomic_t may_jump;

static void handle(int unused)
{
	(void)unused;
	signals++;
	if (may_jump)
		siglongjmp(out, 1);
}

static void signals_interrupt_nothing(int rounds)
{
	struct sigaction action = { .sa_handler = handle };
	struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { { 0, 0 }, { 0, 0 } };
	struct regcache_mr mr;

	IS(sigaction(SIGALRM, &action, NULL), 0);
	IS(setitimer(ITIMER_REAL, &often, NULL), 0);
	for (int i = 0; i < rounds || signals < 10; i++) {
		char *memory = pages(1);

		IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
		munmap(memory, PAGE);
	}
	/* A handler leaves the program's own code, while the program holds a guard. */
	char *memory = pages(1);
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	if (!sigsetjmp(out, 1)) {
		may_jump = 1;
		/* ThreadSanitizer delivers signals only in calls. */
		for (;;)
			usleep(100);
	}
	may_jump = 0;
	IS(setitimer(ITIMER_REAL, &never, NULL), 0);
	IS(regcache_put(mr.guard), 0);
	munmap(memory, PAGE);
}

int main(int argc, char **argv)
{
	struct fake fake = { 0 };
	struct regcache_device device = { sizeof device, &fake, reg, dereg };
	int count = argc > 1 ? atoi(argv[1]) : 200;

	zero = open("/dev/zero", O_RDONLY);
	sem_init(&begun, 0, 0);
	IS(regcache_create_for(&device, NULL, &cache), 0);
	cancelled_threads_leave_nothing(count);
	guards_outlive_their_threads();
	signals_interrupt_nothing(count);
	IS(regcache_destroy(cache), 0);
	IS(fake.live, 0);
	puts("endings: ok");
	return 0;
}
