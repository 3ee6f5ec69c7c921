/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Looks up libibverbs's functions by name in every way that a program can, before the library is
 * loaded and after:
 *
 *     lookup "under the shim" DIR
 *     lookup "" DIR
 *
 * DIR is the directory of libnext.so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <string.h>

#include "check.h"

static int is_in(void *function, const char *library)
{
	return strncmp(home(function), library, strlen(library)) == 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name, *version;
	} ours[] = {
		{ "ibv_reg_mr", "IBVERBS_1.1" },	{ "ibv_reg_mr_iova", "IBVERBS_1.7" },
		{ "ibv_reg_mr_iova2", "IBVERBS_1.8" },	{ "ibv_rereg_mr", "IBVERBS_1.1" },
		{ "ibv_dereg_mr", "IBVERBS_1.1" },	{ "ibv_dealloc_pd", "IBVERBS_1.1" },
		{ "ibv_close_device", "IBVERBS_1.1" },	{ "ibv_unimport_pd", "IBVERBS_1.10" },
		{ "ibv_open_device", "IBVERBS_1.1" },	{ "ibv_import_device", "IBVERBS_1.10" },
		{ "ibv_create_cq", "IBVERBS_1.1" },	{ "ibv_destroy_cq", "IBVERBS_1.1" },
		{ "ibv_create_qp", "IBVERBS_1.1" },	{ "ibv_destroy_qp", "IBVERBS_1.1" },
		{ "ibv_modify_qp", "IBVERBS_1.1" },	{ "ibv_create_srq", "IBVERBS_1.1" },
		{ "ibv_destroy_srq", "IBVERBS_1.1" },	{ "ibv_alloc_pd", "IBVERBS_1.1" },
		{ "ibv_create_ah", "IBVERBS_1.1" },
	};
	char path[4096];

	CHECK(argc == 3);
	const char *expected = argv[1][0] ? "librcpreload.so" : "libibverbs.so";

	/* libibverbs is not loaded, so no lookup finds its functions. */
	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++) {
		dlerror();
		CHECK(!dlsym(RTLD_DEFAULT, ours[i].name) && dlerror());
		CHECK(!dlvsym(RTLD_DEFAULT, ours[i].name, ours[i].version) && dlerror());
		/* Programs usually check in this way whether the library is loaded. */
		CHECK(!dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_NOLOAD));
	}

	void *verbs = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);

	CHECK(verbs);
	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++) {
		const char *name = ours[i].name;

		dlerror();
		void *found = dlsym(verbs, name);

		CHECK(is_in(found, expected) && !dlerror());
		CHECK(dlvsym(verbs, name, ours[i].version) == found && !dlerror());
		CHECK(!dlvsym(verbs, name, "IBVERBS_7.7") && dlerror());
	}
	/*
	 * The shim interposes one version of each function, so a lookup of another version or
	 * another function finds libibverbs's.
	 */
	CHECK(is_in(dlvsym(verbs, "ibv_reg_mr", "IBVERBS_1.0"), "libibverbs.so"));
	CHECK(is_in(dlvsym(verbs, "ibv_dereg_mr", "IBVERBS_1.0"), "libibverbs.so"));
	CHECK(is_in(dlsym(verbs, "ibv_query_device"), "libibverbs.so"));
	CHECK(is_in(dlsym(verbs, "ibv_reg_dmabuf_mr"), "libibverbs.so"));
	/*
	 * libibverbs is loaded with RTLD_LOCAL, so RTLD_DEFAULT does not find it. Under the shim,
	 * RTLD_DEFAULT finds the shim, which does not have these versions. So the lookups find
	 * nothing.
	 */
	CHECK(!dlvsym(RTLD_DEFAULT, "ibv_reg_mr", "IBVERBS_1.0"));
	CHECK(!dlvsym(RTLD_DEFAULT, "ibv_reg_mr", "IBVERBS_7.7"));
	dlerror();
	CHECK(!dlsym(verbs, "ibv_no_such_function"));
	const char *error = dlerror();

	CHECK(error && strstr(error, "ibv_no_such_function"));

	/*
	 * RTLD_NEXT means the next library after the caller. So libc must see this call's caller,
	 * and not the shim.
	 */
	snprintf(path, sizeof(path), "%s/libnext.so", argv[2]);
	void *next = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	CHECK(next);
	void *(*own_name)(void) = (void *(*)(void))dlsym(next, "next_own_name");
	void *(*next_malloc)(void) = (void *(*)(void))dlsym(next, "next_malloc");

	CHECK(is_in((void *)own_name, "libnext.so"));
	CHECK(!own_name());
	CHECK(is_in(next_malloc(), "libc.so"));
	CHECK(is_in(dlsym(RTLD_DEFAULT, "malloc"), "libc.so"));
	CHECK(is_in(dlsym(RTLD_NEXT, "malloc"), "libc.so"));
	/* If the program itself is the caller, the next library is the preloaded shim. */
	if (argv[1][0])
		CHECK(is_in(dlsym(RTLD_NEXT, "ibv_reg_mr"), "librcpreload.so"));

	/* From here on libibverbs is in the global scope. */
	CHECK(dlopen("libibverbs.so.1", RTLD_NOW | RTLD_GLOBAL));
	CHECK(is_in(dlsym(RTLD_DEFAULT, "ibv_reg_mr"), expected));
	CHECK(is_in(dlvsym(RTLD_DEFAULT, "ibv_reg_mr", "IBVERBS_1.1"), expected));
	CHECK(is_in(dlsym(dlopen(NULL, RTLD_LAZY), "ibv_dereg_mr"), expected));
	CHECK(is_in(dlvsym(RTLD_DEFAULT, "ibv_reg_mr", "IBVERBS_1.0"), "libibverbs.so"));
	return 0;
}
