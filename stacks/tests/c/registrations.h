/*
 * Registrations that libfabric's verbs provider makes, for the programs on libfabric. The program
 * counts them, and can change memory right after a registration.
 */
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_tagged.h>

#include "counted.h"

#define OK(call) must(#call, (long)(call))

static void must(const char *call, long returned)
{
	if (returned < 0)
		errx(1, "%s: %s", call, fi_strerror((int)-returned));
}

/*
 * The buffer to change as soon as its next registration is made, before libfabric subscribes to its
 * monitor.
 */
static struct buffer *_Atomic in_window;

/* The program assigns this function to `after_registration`. */
static inline void change_in_window(void *at)
{
	struct buffer *buffer = in_window;

	if (buffer && buffer->at == at) {
		in_window = NULL;
		buffer_change(buffer);
	}
}
