/*
 * Compares the shape of the installed UCX's structures with src/abi.rs. Compiling this file is the
 * test: its assertions are for UCX 1.13 to 1.23.
 */
#include <stddef.h>

#include <ucm/api/ucm.h>
#include <ucp/api/ucp_version.h>
#include <ucs/memory/rcache.h>
#include <ucs/type/status.h>

#define ALIGNMENTS (UCP_API_MINOR < 17 ? 16 : 0)
#define MERGE (UCP_API_MINOR < 18 ? 0 : 8)
#define AT(field, offset) \
	_Static_assert(offsetof(ucs_rcache_params_t, field) == (offset) + ALIGNMENTS, #field " is elsewhere")

_Static_assert(UCP_API_MAJOR == 1 && UCP_API_MINOR >= 13 && UCP_API_MINOR <= 22, "an unknown version of UCX");
AT(ucm_events, 8);
AT(ucm_event_priority, 12);
AT(ops, 16);
AT(context, 24);
AT(flags, 32);
AT(max_regions, 40);
AT(max_size, 48);
AT(max_unreleased, 56);
_Static_assert(sizeof(ucs_rcache_params_t) == 64 + ALIGNMENTS, "ucs_rcache_params_t is larger");
_Static_assert(offsetof(ucs_rcache_ops_t, mem_reg) == 0, "mem_reg is elsewhere");
_Static_assert(offsetof(ucs_rcache_ops_t, mem_dereg) == 8, "mem_dereg is elsewhere");
_Static_assert(offsetof(ucs_rcache_ops_t, dump_region) == 16 + MERGE, "dump_region is elsewhere");
_Static_assert(sizeof(ucs_rcache_ops_t) == 24 + MERGE, "ucs_rcache_ops_t is larger");
_Static_assert(offsetof(ucs_rcache_region_t, super.start) == 0, "start is elsewhere");
_Static_assert(offsetof(ucs_rcache_region_t, super.end) == 8, "end is elsewhere");
_Static_assert(offsetof(ucm_event_t, vm_unmapped.address) == 0, "address is elsewhere");
_Static_assert(offsetof(ucm_event_t, vm_unmapped.size) == 8, "size is elsewhere");
_Static_assert(sizeof(ucm_event_t) <= 64, "ucm_event_t is larger");
_Static_assert(UCM_EVENT_VM_UNMAPPED == 1 << 17, "UCM_EVENT_VM_UNMAPPED has another value");
_Static_assert(UCS_ERR_UNSUPPORTED == -22, "UCS_ERR_UNSUPPORTED has another value");

int main(void)
{
	return 0;
}
