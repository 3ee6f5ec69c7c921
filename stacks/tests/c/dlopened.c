/*
 * dlopened LIBRARY ARGUMENTS...: loads a program that was linked as a library, with RTLD_LOCAL, and
 * calls its main(). So the stack's libraries are loaded as a plug-in loads them, and RTLD_NEXT does
 * not find them.
 */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	void *library;
	int (*run)(int, char **);

	if (argc < 2)
		return 2;
	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
	run = (int (*)(int, char **))dlsym(library, "main");
	return run ? run(argc - 1, argv + 1) : 2;
}
