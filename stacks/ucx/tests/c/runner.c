/* runner LIBRARY TEST: loads the library with RTLD_LOCAL, as Open MPI loads its components, and runs a test in it. */
#include <dlfcn.h>
#include <err.h>

int main(int argc, char **argv)
{
	void *library;
	int (*run)(const char *);

	if (argc != 3)
		errx(2, "usage: %s LIBRARY TEST", argv[0]);
	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (!library)
		errx(2, "%s", dlerror());
	run = dlsym(library, "run");
	if (!run)
		errx(2, "%s", dlerror());
	return run(argv[2]);
}
