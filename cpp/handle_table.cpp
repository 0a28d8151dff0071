#include "handle_table.h"

#include <atomic>

namespace nvfp4_moe_op {

int64_t next_id() {
  static std::atomic<int64_t> last{0};
  return ++last;
}

}  // namespace nvfp4_moe_op
