// ParallelFor and StepAll with thread pools of all kinds: threads leave no trace in the results.

#include <memory>

#include "arrays.h"
#include "pool.h"
#include "step.h"

namespace adamx::test {
namespace {

constexpr int64_t kPoolSizes[] = {1, 2, 3, 8, 32};

template <class AnyPool>
auto On(AnyPool& pool) {
  return [&pool](auto task) { pool.Schedule(std::move(task)); };
}

// ---- ParallelFor --------------------------------------------------------------------------------

// The body writes without synchronisation, and the caller reads at once.
template <class Schedule>
void RunEachOnce(int64_t blocks, int64_t helpers, Schedule&& schedule) {
  std::vector<int64_t> counts(blocks), squares(blocks);
  ParallelFor(blocks, helpers, schedule, [&](int64_t i) {
    ++counts[i];
    squares[i] = i * i;
  });
  for (int64_t i = 0; i < blocks; ++i) CHECK(counts[i] == 1 && squares[i] == i * i);
}

TEST(EachBlockOnce) {
  for (int64_t threads : kPoolSizes) {
    Pool pool(threads);
    for (int64_t blocks : {0, 1, 2, 3, 7, 100, 3000})
      for (int64_t helpers : {int64_t{-1}, int64_t{0}, int64_t{1}, threads - 1, threads + 5})
        for (int repeat = 0; repeat < 5; ++repeat) RunEachOnce(blocks, helpers, On(pool));
  }
}

TEST(NoTaskIsEverRun) { RunEachOnce(100, 7, [](auto) {}); }

// Tasks that run at once, in the calling thread.
TEST(TasksRunWhenScheduled) { RunEachOnce(100, 7, [](auto task) { task(); }); }

// Tasks that start late find nothing to do, and do not touch what is gone by then.
TEST(LateTasks) {
  LatePool pool;
  {
    auto sum = std::make_unique<int64_t>(0);  // on the heap, where use after its end is seen
    using Body = std::function<void(int64_t)>;
    auto body = std::make_unique<Body>([&sum](int64_t i) { *sum += i; });
    ParallelFor(100, 7, On(pool), *body);
    CHECK(*sum == 4950);
  }
  CHECK(pool.waiting() == 7);
  pool.RunAll();
}

TEST(NestedParallelFor) {
  for (int64_t threads : kPoolSizes) {
    Pool pool(threads);
    std::vector<int64_t> counts(20 * 30);
    ParallelFor(20, threads, On(pool), [&](int64_t i) {
      ParallelFor(30, threads, On(pool), [&](int64_t j) { ++counts[i * 30 + j]; });
    });
    for (int64_t count : counts) CHECK(count == 1);
  }
}

// ---- StepAll ------------------------------------------------------------------------------------

// A tree of leaves of odd sizes, so that blocks begin and end within leaves and span several.
class Tree {
 public:
  explicit Tree(uint64_t seed, bool with_doubles = true) {
    const Dtype f32 = Dtype::kFloat32, f64 = Dtype::kFloat64, bf16 = Dtype::kBfloat16;
    const Dtypes mixtures[] = {AllOf(f32), {bf16, f32, f32, f32, bf16},
                               with_doubles ? AllOf(f64) : AllOf(bf16)};
    int64_t next = 0;
    for (int64_t size : {3, 0, 16381, 1, 0, 0, 16385, 5000, 777, 1, 2, 9001, 40003, 31, 12345, 0}) {
      leaves_.emplace_back(size, mixtures[(next + seed) % 3], next % 4 != 1);
      leaves_.back().FillRandom(seed + ++next);
    }
  }

  template <class Schedule>
  void Step(const Options& options, int64_t threads, Schedule&& schedule,
            const Kernels& kernels = BestKernels()) {
    std::vector<Leaf> leaves;
    bool in_double = false;
    for (LeafArrays& leaf : leaves_) {
      leaves.push_back(leaf.leaf(options.amsgrad));
      in_double |= InDouble(leaves.back());
    }
    const Scalars<float> floats = Rounded<float>({});
    const Scalars<double> doubles = Rounded<double>({});
    double norm = 0;
    if (options.clip) {
      const double sum = SumOfSquares(kernels, leaves, threads, schedule);
      norm = std::sqrt(in_double ? sum : static_cast<float>(sum));
    }
    StepAll(kernels, leaves, floats, in_double ? &doubles : nullptr, options, norm, threads,
            schedule);
  }

  std::vector<LeafArrays>& leaves() { return leaves_; }
  const std::vector<LeafArrays>& leaves() const { return leaves_; }

 private:
  std::vector<LeafArrays> leaves_;
};

void CheckSameTree(const Tree& found, const Tree& expected, const std::string& what) {
  for (size_t i = 0; i < found.leaves().size(); ++i)
    CheckSame(found.leaves()[i], expected.leaves()[i], what + ", leaf " + std::to_string(i));
}

constexpr Options kClipped = With(kOptax, /*amsgrad=*/true, /*decoupled=*/true, /*clip=*/true);
constexpr Options kAnother = With(kKeras, false, /*decoupled=*/false, false);
constexpr auto kNoPool = [](auto) {};

Tree SteppedAlone(uint64_t seed) {
  Tree tree(seed);
  tree.Step(kClipped, 1, kNoPool);
  return tree;
}

// Without clipping, each leaf of a tree is what it would be alone.
TEST(LeavesOfATree) {
  for (bool with_doubles : {false, true}) {
    const Tree before(1, with_doubles);
    for (const Kernels* kernels : EveryKernels())
      for (const Options& options : EveryOptions()) {
        if (options.clip) continue;
        Tree found = before, expected = before;
        found.Step(options, 1, kNoPool, *kernels);
        for (LeafArrays& arrays : expected.leaves()) {
          const Leaf leaf = arrays.leaf(options.amsgrad);
          if (InDouble(leaf)) {
            RunStep(*kernels, leaf, 0, leaf.size, Rounded<double>({}), options, 0);
          } else {
            RunStep(*kernels, leaf, 0, leaf.size, Rounded<float>({}), options, 0);
          }
        }
        CheckSameTree(found, expected, std::string(kernels->name) + ", " + Describe(options));
      }
  }
}

// The gradients of all leaves are clipped by their norm together, whatever their dtypes.
TEST(GlobalNorm) {
  const Options options = With(kOptax, false, true, /*clip=*/true);
  const Hyperparameters h;
  for (bool with_doubles : {false, true}) {
    const Tree before(1, with_doubles);
    long double sum = 0;
    for (const LeafArrays& leaf : before.leaves())
      for (int64_t i = 0; i < leaf.size(); ++i) sum += std::pow(leaf[kG].Get(i), 2);
    const double factor = static_cast<double>(h.max_norm / std::sqrt(sum));
    for (const Kernels* kernels : EveryKernels()) {
      Tree found = before;
      found.Step(options, 1, kNoPool, *kernels);
      for (size_t n = 0; n < before.leaves().size(); ++n) {
        const GuardedArray &g = before.leaves()[n][kG], &m = before.leaves()[n][kM];
        const GuardedArray& next_m = found.leaves()[n][kM];
        // The norm is as precise as the coarsest gradients are.
        const bool in_float = m.dtype() == Dtype::kFloat64;
        const Format format = FormatOf(in_float ? Dtype::kFloat32 : m.dtype());
        for (int64_t i = 0; i < m.size(); ++i) {
          const double from_m = 0.9 * m.Get(i), from_g = 0.1 * factor * g.Get(i);
          const double scale = std::max(std::fabs(from_m), std::fabs(from_g));
          CHECK(std::fabs(next_m.Get(i) - (from_m + from_g)) <= 4 * UnitInLastPlace(scale, format),
                "%s, leaf %d: m[%d] is %.9g, expected %.9g", kernels->name, static_cast<int>(n),
                static_cast<int>(i), next_m.Get(i), from_m + from_g);
        }
      }
    }
  }
}

TEST(PoolsOfAllSizes) {
  const Tree before(2);
  for (const Options& options : {kClipped, kAnother}) {
    Tree expected = before;
    expected.Step(options, 1, kNoPool);
    for (int64_t threads : kPoolSizes) {
      Pool pool(threads);
      for (int repeat = 0; repeat < 3; ++repeat) {
        Tree found = before;
        found.Step(options, threads, On(pool));
        CheckSameTree(found, expected, Describe(options) + ", " + std::to_string(threads));
      }
    }
  }
}

TEST(ManyCallersOfOnePool) {
  constexpr int64_t kCallers = 6, kSteps = 5;
  for (int64_t threads : {2, 8}) {
    Pool pool(threads);
    std::vector<Tree> found;
    for (int64_t i = 0; i < kCallers; ++i) found.emplace_back(i);
    std::vector<std::thread> callers;
    for (Tree& tree : found)
      callers.emplace_back([&] {
        for (int64_t step = 0; step < kSteps; ++step) tree.Step(kClipped, threads, On(pool));
      });
    for (std::thread& caller : callers) caller.join();
    for (int64_t i = 0; i < kCallers; ++i) {
      Tree expected(i);
      for (int64_t step = 0; step < kSteps; ++step) expected.Step(kClipped, 1, kNoPool);
      CheckSameTree(found[i], expected, "caller " + std::to_string(i));
    }
  }
}

TEST(StepWithoutThePool) {
  Tree found(3);
  found.Step(kClipped, 8, kNoPool);
  CheckSameTree(found, SteppedAlone(3), "no task is ever run");
}

TEST(StepWithLateTasks) {
  LatePool pool;
  {
    Tree found(4);
    found.Step(kClipped, 8, On(pool));
    CheckSameTree(found, SteppedAlone(4), "before the tasks");
  }
  CHECK(pool.waiting() == 12);  // 7 blocks: 6 for the norm, and 6 for the step
  pool.RunAll();
}

TEST(StepWhileThePoolIsBlocked) {
  Pool pool(3);
  Latch begun(3), released(1);
  for (int i = 0; i < 3; ++i)
    pool.Schedule([&] {
      begun.CountDown();
      released.Wait();
    });
  begun.Wait();
  Tree found(5);
  found.Step(kClipped, 3, On(pool));  // returns although no thread is free
  CheckSameTree(found, SteppedAlone(5), "blocked");
  released.CountDown();
}

TEST(StepsFromThePoolsOwnThreads) {
  constexpr int64_t kSteps = 6;
  const Tree expected = SteppedAlone(6);
  for (int64_t threads : kPoolSizes) {
    std::vector<Tree> found(kSteps, Tree(6));
    Latch done(kSteps);
    Pool pool(threads);
    for (Tree& tree : found)
      pool.Schedule([&] {
        tree.Step(kClipped, threads, On(pool));
        done.CountDown();
      });
    done.Wait();
    for (const Tree& tree : found)
      CheckSameTree(tree, expected, std::to_string(threads) + " threads");
  }
}

}  // namespace
}  // namespace adamx::test
