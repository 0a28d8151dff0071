// SPDX-License-Identifier: Apache-2.0
/* As much of a driver as driver/ needs where nothing stands in: a GPU of 9.0 whose modules are the first byte of their
 * image. */
#include <stddef.h>

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? 9 : attribute == 97 ? 232448 : 0; /* 75: major, 76: minor, 97: shared memory by opt-in */
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)(size_t)*(const unsigned char*)image;
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)name;
  *function = module;
  return 0;
}
int cuModuleGetGlobal_v2(void) { return 500; } /* not found */
int cuFuncSetAttribute(void) { return 0; }
int cuFuncGetName(const char** name, void* function) {
  (void)function;
  *name = "kernel";
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  (void)attribute, (void)function;
  *value = 1024; /* static shared memory */
  return 0;
}
