/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A library that waits before each connection of rdma_cm. A client of perftest connects twice, and
 * its server does not yet listen for the second connection when the first one is made. If the
 * client is earlier, it fails.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

struct rdma_cm_id;
struct rdma_conn_param;
int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *parameters);

int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *parameters)
{
	int (*next)(struct rdma_cm_id *, struct rdma_conn_param *) = dlsym(RTLD_NEXT, "rdma_connect");

	sleep(2);
	return next(id, parameters);
}
