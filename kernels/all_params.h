// SPDX-License-Identifier: Apache-2.0
/* Every struct that Rust hands to a kernel: bindgen reads this file. */
#ifndef NVFP4_MOE_ALL_PARAMS_H
#define NVFP4_MOE_ALL_PARAMS_H

#include "hopper/params.h"
#include "params.h"
#include "portable/params.h"
#include "sm100/params.h"
#include "sm120/params.h"

#endif
