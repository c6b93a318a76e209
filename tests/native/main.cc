// Runs every test, or those whose names are given; returns how many failed.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "check.h"

// With AddressSanitizer, see also uses of a local variable of a function that has returned.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=1"; }

namespace adamx::test {
namespace {

constexpr int kPrinted = 10;  // failures of each test

std::atomic<int> failures{0};  // of the running test
std::mutex printing;

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

}  // namespace

Test::Test(const char* name, void (*run)()) : name(name), run(run) { Tests().push_back(*this); }

void Fail(const char* file, int line, const char* what, const char* format, ...) {
  if (failures++ >= kPrinted) return;
  std::lock_guard<std::mutex> lock(printing);
  std::printf("%s:%d: not so: %s.", file, line, what);
  std::va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
}

std::vector<const Kernels*> EveryKernels() {
  const Kernels* found[3];
  const size_t count = AllKernels(found);
  return {found, found + count};
}

int Main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what was printed outlives a crash
  std::printf("instruction sets:");
  for (const Kernels* kernels : EveryKernels()) std::printf(" %s", kernels->name);
  std::printf("\n");
  int passed = 0, failed = 0;
  for (const Test& test : Tests()) {
    auto is_name = [&](const char* given) { return std::strcmp(given, test.name) == 0; };
    if (argc > 1 && std::none_of(argv + 1, argv + argc, is_name)) continue;
    failures = 0;
    const auto begin = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%s: %s, %.2f s", test.name, failures ? "FAILED" : "passed", seconds.count());
    if (failures) std::printf(", %d checks", failures.load());
    std::printf("\n");
    ++(failures ? failed : passed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return passed + failed == 0 ? 1 : failed;
}

}  // namespace adamx::test

int main(int argc, char** argv) { return adamx::test::Main(argc, argv); }
