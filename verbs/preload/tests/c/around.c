/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Registers and deregisters around each transfer, which is the case for which the shim exists.
 * After every REMAP_EVERY transfers the program unmaps the buffer and maps it again, and the kernel
 * chooses the same address. A naive cache then uses a stale registration.
 *
 *     around TRANSFERS BYTES REMAP_EVERY
 *
 * Each transfer is an RDMA write of BYTES bytes, which differ from those of all earlier transfers.
 * The program compares all bytes that arrive. It prints the time of ibv_reg_mr and ibv_dereg_mr for
 * each transfer. The time to read the clock is measured separately and subtracted.
 */
#include <sys/mman.h>
#include <time.h>

#include "loop.h"

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void *map(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

int main(int argc, char **argv)
{
	CHECK(argc == 4);
	long transfers = atol(argv[1]), every = atol(argv[3]);
	size_t bytes = strtoul(argv[2], NULL, 10), words = bytes / sizeof(uint64_t);
	long remaps = 0, same_address = 0, keys = 0, wrong_transfers = 0, wrong_bytes = 0;
	double hits = 0, misses = 0, looking = 0, started;
	uint32_t key = 0;
	struct loop loop;

	loop_make(&loop, NULL);
	uint64_t *source = map(bytes), *sink = map(bytes);
	struct ibv_mr *to = ibv_reg_mr(loop.pd, sink, bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);

	CHECK(to);
	started = now();
	for (long i = 0; i < transfers; i++) {
		if (i > 0 && i % every == 0) {
			uint64_t *before = source;

			CHECK(munmap(source, bytes) == 0);
			source = map(bytes);
			remaps++;
			same_address += source == before;
		}
		for (size_t w = 0; w < words; w++)
			source[w] = ((uint64_t)i << 32) + w;

		double t = now();

		looking += now() - t;
		t = now();
		struct ibv_mr *from = ibv_reg_mr(loop.pd, source, bytes, IBV_ACCESS_LOCAL_WRITE);

		double took = now() - t;

		CHECK(from);
		CHECK(from->addr == source && from->length == bytes && from->pd == loop.pd);
		keys += i == 0 || from->lkey != key;
		key = from->lkey;
		CHECK(loop_write(&loop, source, from->lkey, bytes, sink, to->rkey) == IBV_WC_SUCCESS);
		t = now();
		CHECK(ibv_dereg_mr(from) == 0);
		took += now() - t;
		*(i % every == 0 ? &misses : &hits) += took;

		if (memcmp(source, sink, bytes)) {
			wrong_transfers++;
			for (size_t b = 0; b < bytes; b++)
				wrong_bytes += ((char *)source)[b] != ((char *)sink)[b];
		}
	}
	double clock = looking / transfers * 1e9;

	printf("transfers=%ld bytes=%zu remaps=%ld same_address=%ld keys=%ld wrong_transfers=%ld wrong_bytes=%ld "
	       "reg_dereg_ns=%.0f after_remap_ns=%.0f else_ns=%.0f clock_ns=%.0f seconds=%.1f\n",
	       transfers, bytes, remaps, same_address, keys, wrong_transfers, wrong_bytes,
	       (misses + hits) / transfers * 1e9 - 2 * clock, misses / (remaps + 1) * 1e9 - 2 * clock,
	       hits / (transfers - remaps - 1) * 1e9 - 2 * clock, clock, now() - started);
	CHECK(ibv_dereg_mr(to) == 0);
	CHECK(munmap(source, bytes) == 0 && munmap(sink, bytes) == 0);
	loop_end(&loop);
	return 0;
}
