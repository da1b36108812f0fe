// Errors inside the library are exceptions; the C functions turn them into a status and a sentence.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "include/compress_kernels.h"

namespace compress {

class Failure : public std::exception {
 public:
  Failure(compress_status status, std::string text) : status_(status), text_(std::move(text)) {}
  compress_status status() const noexcept { return status_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  compress_status status_;
  std::string text_;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(compress_status status, const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Failure(status, text);
}

// Runs `work` and reports what it throws.
template <typename Work>
compress_status reported(char* message, size_t size, Work&& work) noexcept {
  const auto tell = [&](compress_status status, const char* text) {
    if (message && size) std::snprintf(message, size, "%s", text);
    return status;
  };
  try {
    work();
    return COMPRESS_OK;
  } catch (const Failure& failure) {
    return tell(failure.status(), failure.what());
  } catch (const std::bad_alloc&) {
    return tell(COMPRESS_NO_MEMORY, "out of memory");
  } catch (const std::exception& other) {
    return tell(COMPRESS_INVALID, other.what());
  } catch (...) {
    return tell(COMPRESS_INVALID, "an error without a description");
  }
}

}  // namespace compress
