// SPDX-License-Identifier: Apache-2.0
/* A program that asks the driver, as the library does, and says what it heard. The argument is a file with an image. */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char** argv) {
  static char image[4096];
  FILE* file = argc > 1 ? fopen(argv[1], "rb") : NULL;
  if (!file || fread(image, 1, sizeof image, file) == 0) return 2;
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  int (*attribute)(int*, int, int) = (int (*)(int*, int, int))dlsym(library, "cuDeviceGetAttribute");
  int (*load)(void**, const void*) = (int (*)(void**, const void*))dlsym(library, "cuModuleLoadData");
  int (*function)(void**, void*, const char*) =
      (int (*)(void**, void*, const char*))dlsym(library, "cuModuleGetFunction");
  int (*set)(void*, int, int) = (int (*)(void*, int, int))dlsym(library, "cuFuncSetAttribute");
  int major, minor, shared;
  void *module, *kernel;
  attribute(&major, 75, 0), attribute(&minor, 76, 0), attribute(&shared, 97, 0);
  load(&module, image), function(&kernel, module, "kernel");
  printf("%d.%d, %d bytes, image %d, %d, %d\n", major, minor, shared, (int)(size_t)module, set(kernel, 8, 100352),
         set(kernel, 8, 100353)); /* 98 KiB and one more, beside 1 KiB of its own */
  return 0;
}
