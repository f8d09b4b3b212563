// The counting passes over all scores, for a CPU. What they compute is said in groups.py; plain.py
// is held against them; here it takes one pass over the scores, several threads and no memory of N.
// Plain C at the boundary: no header of torch or Python, so that any C++ compiler makes it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

namespace {

constexpr int kBlock = 128;             // scores that are looked at together
constexpr int kFew = 16;                // of them, what a processor may do in one instruction
constexpr int kAtOnce = 2;              // thresholds of a cell that are compared without a branch
constexpr int64_t kPerThreshold = 2;    // cells of a group for each of its thresholds
constexpr int64_t kMaxCells = 1 << 16;  // of a group
constexpr int64_t kPerThread = 1 << 12; // fewer scores are not worth a thread
const float kInfinity = __builtin_inff();

// The thresholds of all groups, as the caller has them.
struct Thresholds {
  const float* at;
  const int64_t* bounds;
  const double* through;  // per bin the sum of the weights below it; null: of ones

  int64_t num(int64_t g) const { return bounds[g + 1] - bounds[g]; }
  double below(int64_t g, int64_t bin) const {
    return through ? through[bounds[g] + g + bin] : double(bin);
  }
};

using Bins = std::vector<std::vector<int64_t>>;  // what each thread has counted in each bin

// The rising thresholds of each group cut the scores into bins. A coarse table over their range
// settles most scores at one look: the cell of a score is a rising function of it, so all
// thresholds of lower cells are below it and all of higher ones above. Exact wherever a cell ends.
struct Groups {
  std::vector<float> at;        // of each group its thresholds, then infinite ones
  std::vector<double> values;   // of each bin, what a score in it adds to its gradient
  std::vector<int64_t> offset;  // of each group in `at`; bin k is below threshold k
  std::vector<int32_t> num;
  std::vector<float> floor;     // the lowest threshold of each group, infinite if there is none
  std::vector<float> low, scale, top;
  std::vector<int32_t> start;   // of each group's cells
  std::vector<int32_t> cells;   // the bin of a score below all thresholds of the cell

  // With thresholds `moved` the bins are those between both, and a score's value is what its rank
  // changes by from one to the other, over the divisor, times the weight. To count alone, both at
  // once, any divisor and weight will do.
  // `high`: no score is above it, so that no cell is spent on thresholds that are.
  Groups(const Thresholds& before, const Thresholds* moved, const double* divisor,
         const double* weight, int64_t num_groups, float high) {
    for (int64_t g = 0; g < num_groups; ++g) {
      offset.push_back(at.size());
      const float *x = before.at + before.bounds[g], *x_end = x + before.num(g);
      if (moved) {
        const float *y = moved->at + moved->bounds[g], *y_end = y + moved->num(g);
        for (int64_t was = 0, is = 0;;) {
          const double change = before.below(g, was) - moved->below(g, is);
          values.push_back(change == 0 ? 0 : change / divisor[g] * weight[g]);
          if (x == x_end && y == y_end) break;
          const bool first = y == y_end || (x != x_end && *x <= *y);
          at.push_back(first ? *x++ : *y++);
          ++(first ? was : is);
        }
      } else {
        at.insert(at.end(), x, x_end);
      }
      num.push_back(int32_t(at.size() - offset[g]));
      at.insert(at.end(), kAtOnce + 1, kInfinity);
      if (moved) values.resize(at.size());
      add_cells(g, high);
    }
    // A block of columns is looked at as a whole, also where it ends after the last one.
    for (auto* of_group : {&low, &scale, &top}) of_group->resize(num_groups + kBlock);
    start.resize(num_groups + kBlock);
  }

  int32_t cell_of(int64_t g, float x) const {
    float place = (x - low[g]) * scale[g] + 1;
    place = place < top[g] ? place : top[g];  // NaN: the highest cell
    return start[g] + int32_t(place > 0 ? place : 0);
  }

  Bins bins(int threads) const { return Bins(threads, std::vector<int64_t>(at.size())); }

  int32_t bin_of(int32_t cell, float x) const {
    const int32_t first = cells[cell];
    const float* next = at.data() + first;
    if (__builtin_expect(x >= next[kAtOnce], 0)) return search(cell, x);
    int32_t bin = first;
    for (int k = 0; k < kAtOnce; ++k) bin += x >= next[k];
    return bin;
  }

 private:
  __attribute__((noinline)) int32_t search(int32_t cell, float x) const {
    const float* all = at.data();
    return int32_t(std::upper_bound(all + cells[cell], all + cells[cell + 1], x) - all);
  }

  void add_cells(int64_t g, float high) {
    const float* own = &at[offset[g]];
    floor.push_back(own[0]);
    // The first cell is for all that lies below; one more says where the thresholds end.
    const int64_t size = num[g] ? std::min(kPerThreshold * num[g] + 2, kMaxCells) : 1;
    top.push_back(float(size - 1));
    low.push_back(num[g] ? own[0] : 0);
    const float range = num[g] ? std::min(own[num[g] - 1], high) - own[0] : 0;
    scale.push_back(range > 0 ? float(size - 2) / range : 0);
    start.push_back(int32_t(cells.size()));
    int32_t k = 0;
    for (int64_t cell = 0; cell < size; ++cell) {
      cells.push_back(int32_t(offset[g] + k));
      while (k < num[g] && cell_of(g, own[k]) - start[g] <= cell) ++k;
    }
    cells.push_back(int32_t(offset[g] + num[g]));
  }
};

// The (rows, columns) scores, with strides in elements, and the class of each row.
struct Scores {
  const float* values;
  int64_t rows, columns, row_stride, column_stride;
  const int64_t* gt;

  // Whether the columns of a row are nearest to each other in memory.
  bool by_row() const { return columns > 1 && column_stride <= row_stride; }
};

float highest(const float* values, int64_t number) {
  float most[kBlock];
  std::fill(most, most + kBlock, -kInfinity);
  int64_t i = 0;
  for (; i + kBlock <= number; i += kBlock)
    for (int j = 0; j < kBlock; ++j) most[j] = values[i + j] > most[j] ? values[i + j] : most[j];
  for (; i < number; ++i) most[0] = values[i] > most[0] ? values[i] : most[0];
  return *std::max_element(most, most + kBlock);
}

// The smallest float that is not below x.
float up_to_float(double x) {
  const float y = float(x);
  return double(y) < x ? std::nextafter(y, kInfinity) : y;
}

// Orders as the number does, also where it is none (NaN), which no sort bears.
int64_t order_code(double x) {
  x += 0.0;
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 63) & INT64_MAX);
}

struct Keyed {
  int64_t key, item;
};

// Sorts by rising key, stable. By bytes, from the lowest on, as comparisons take several times as
// long; a byte that all have in common takes no pass.
void sort_keyed(std::vector<Keyed>& items) {
  if (items.size() < 128) {
    std::stable_sort(items.begin(), items.end(),
                     [](const Keyed& a, const Keyed& b) { return a.key < b.key; });
    return;
  }
  constexpr int kBytes = 8;
  std::vector<int64_t> counts(kBytes << 8);
  const auto byte_of = [](int64_t key, int byte) {
    return int(uint64_t(key ^ INT64_MIN) >> (8 * byte) & 255);
  };
  for (const Keyed& one : items)
    for (int byte = 0; byte < kBytes; ++byte) ++counts[(byte << 8) + byte_of(one.key, byte)];
  std::vector<Keyed> other(items.size());
  for (int byte = 0; byte < kBytes; ++byte) {
    int64_t* next = &counts[byte << 8];
    if (next[byte_of(items[0].key, byte)] == int64_t(items.size())) continue;
    int64_t sum = 0;
    for (int value = 0; value < 256; ++value) sum += std::exchange(next[value], sum);
    for (const Keyed& one : items) other[next[byte_of(one.key, byte)]++] = one;
    items.swap(other);
  }
}

int threads_for(int64_t scores, int most) {
  return int(std::max<int64_t>(1, std::min<int64_t>(most, scores / kPerThread)));
}

// Up to kBlock scores that lie side by side: of row n from column c on, or the other way round.
struct Block {
  float x[kBlock];
  uint8_t negative[kBlock];  // 1, or 0; 0 for what is beyond the number
  int number;
  int64_t n, c;

  // With what fills the last few up.
  int padded() const { return (number + kFew - 1) / kFew * kFew; }
};

// Calls see(thread, block) for all scores but the rows that are in no list: skip(n).
template <bool kByRow, class See, class Skip>
void visit(const Scores& s, int threads, See see, Skip skip) {
  const int64_t stride = kByRow ? s.column_stride : s.row_stride;
  constexpr int64_t kStretch = 1 << 12;  // by column, a task is a stretch of one column
  const int64_t stretches = (s.rows + kStretch - 1) / kStretch;
  const int64_t tasks = kByRow ? s.rows : s.columns * stretches;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    Block block{};
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
      const int64_t n = kByRow ? task : task % stretches * kStretch;
      const int64_t c = kByRow ? 0 : task / stretches;
      const int64_t length = kByRow ? s.columns : std::min(kStretch, s.rows - n);
      if (kByRow && s.gt[n] < 0) {
        skip(n);
        continue;
      }
      const float* values = s.values + n * s.row_stride + c * s.column_stride;
      for (int64_t start = 0; start < length; start += kBlock) {
        const int number = int(std::min<int64_t>(kBlock, length - start));
        block.number = number;
        block.n = kByRow ? n : n + start, block.c = kByRow ? start : c;
        if (stride == 1)
          std::memcpy(block.x, values + start, number * sizeof(float));
        else
          for (int i = 0; i < number; ++i) block.x[i] = values[(start + i) * stride];
        const int64_t* gt = s.gt + block.n;
        if (kByRow) {
          std::memset(block.negative, 0, sizeof block.negative);
          std::memset(block.negative, 1, number);
          const int64_t positive = *gt - start;
          if (positive >= 0 && positive < number) block.negative[positive] = 0;
        } else {
          int32_t negative[kBlock];
          for (int i = 0; i < number; ++i) negative[i] = (gt[i] != c) & (gt[i] >= 0);
          for (int i = 0; i < number; ++i) block.negative[i] = uint8_t(negative[i]);
          std::memset(block.negative + number, 0, kBlock - number);
        }
        see(thread, block);
      }
    }
  }
}

// For each byte the places of its bits, each in a byte of its own, and their number.
struct Places {
  uint64_t of[256] = {};
  uint8_t number[256] = {};

  constexpr Places() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0; bit < 8; ++bit)
        if (mask >> bit & 1) of[mask] |= uint64_t(bit) << 8 * number[mask]++;
  }
};
constexpr Places kPlaces;
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte is the lowest");

// Of the negatives in a block those that are marked, by their places; returns how many. Eight at a
// time, as a loop with a step that depends on each mark takes most of a pass over the scores.
// `places` has room for eight more than a block.
int pick(const Block& block, const int32_t* marks, uint8_t* places) {
  uint8_t picked[kBlock];
  const int padded = block.padded();
  for (int i = 0; i < padded; ++i) picked[i] = uint8_t(marks[i]) & block.negative[i];
  int number = 0;
  for (int i = 0; i < padded; i += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, picked + i, 8);
    const auto mask = uint8_t((bytes * 0x0102040810204080u) >> 56);  // a bit of each byte
    const uint64_t found = kPlaces.of[mask] + i * 0x0101010101010101u;
    std::memcpy(places + number, &found, 8);
    number += kPlaces.number[mask];
  }
  return number;
}

// The scores of a block that matter to groups: to g + i the i-th of them (kStride 1), all to g (0).
template <int kStride>
struct Near {
  int number = 0;
  uint8_t places[kBlock + 8];  // in the block: negatives at or above the floor
  int32_t cells[kBlock];       // of every score of the block

  Near(const Block& block, const Groups& groups, int64_t g) {
    const float *floor = groups.floor.data() + g, *low = groups.low.data() + g;
    const float *scale = groups.scale.data() + g, *top = groups.top.data() + g;
    const int32_t* start = groups.start.data() + g;
    int any = 0;
    for (int i = 0; i < block.number; ++i) any |= block.x[i] >= floor[i * kStride];
    if (!any) return;
    const int padded = block.padded();
    for (int i = 0; i < padded; ++i) {  // Groups::cell_of, for several at a time
      float place = (block.x[i] - low[i * kStride]) * scale[i * kStride] + 1;
      place = place < top[i * kStride] ? place : top[i * kStride];
      cells[i] = start[i * kStride] + int32_t(place > 0 ? place : 0);
    }
    int32_t reaches[kBlock];
    for (int i = 0; i < padded; ++i) reaches[i] = block.x[i] >= floor[i * kStride];
    number = pick(block, reaches, places);
  }
};

// From scores in each bin to scores at or above each of the thresholds, which are among those that
// cut the bins.
void from_bins(const Groups& groups, const Thresholds& thresholds, const Bins& bins,
               int64_t* above) {
  for (size_t g = 0; g < groups.num.size(); ++g) {
    const int64_t* first = thresholds.bounds + g;
    int64_t sum = 0, k = groups.offset[g] + groups.num[g];
    for (int64_t i = first[1] - 1; i >= first[0]; --i) {
      // The bins above the lowest threshold that equals this one.
      for (; k > groups.offset[g] && groups.at[k - 1] >= thresholds.at[i]; --k)
        for (const auto& part : bins) sum += part[k];
      above[i] = sum;
    }
  }
}

template <bool kByRow>
void count_as(const Scores& s, const Groups& groups, Bins& bins) {
  visit<kByRow>(
      s, int(bins.size()),
      [&](int thread, const Block& block) {
        int64_t* bin = bins[thread].data();
        const Near<kByRow> own(block, groups, block.c);
        for (int j = 0; j < own.number; ++j)
          ++bin[groups.bin_of(own.cells[own.places[j]], block.x[own.places[j]])];
        const Near<0> joined(block, groups, s.columns);
        for (int j = 0; j < joined.number; ++j)
          ++bin[groups.bin_of(joined.cells[joined.places[j]], block.x[joined.places[j]])];
      },
      [](int64_t) {});
}

void count(const Scores& s, const Groups& groups, Bins& bins) {
  s.by_row() ? count_as<true>(s, groups, bins) : count_as<false>(s, groups, bins);
}

// Rows of values that each name their group, `counts` of them in use, `size` from row to row.
struct Listed {
  const float* values;
  const int32_t* lists;
  const int64_t* counts;
  int64_t rows, size;
};

// Counts all that is in the bins besides, each value in the group that it names.
void count_listed(const Listed& listed, const Groups& groups, Bins& bins) {
  const int threads = threads_for(listed.rows * listed.size, int(bins.size()));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    int64_t* bin = bins[thread].data();
    for (int64_t row = 0; row < listed.rows; ++row) {
      const float* values = listed.values + row * listed.size;
      const int32_t* lists = listed.lists + row * listed.size;
      const int64_t number = std::min(listed.counts[row], listed.size);
      for (int64_t i = number * thread / threads; i < number * (thread + 1) / threads; ++i) {
        if (!(values[i] >= groups.floor[lists[i]])) continue;
        ++bin[groups.bin_of(groups.cell_of(lists[i], values[i]), values[i])];
      }
    }
  }
}

// Where the gradient goes, with strides in elements.
template <class Out>
struct Gradient {
  Out* values;
  int64_t row_stride, column_stride;
};

template <bool kByRow, class Out>
void write_as(const Scores& s, const Groups& groups, const Gradient<Out>& grad, Bins& bins) {
  const int64_t stride = kByRow ? grad.column_stride : grad.row_stride;
  visit<kByRow>(
      s, int(bins.size()),
      [&](int thread, const Block& block) {
        int64_t* bin = bins[thread].data();
        double value[kBlock] = {};
        const Near<kByRow> own(block, groups, block.c);
        for (int j = 0; j < own.number; ++j) {
          const int i = own.places[j], found = groups.bin_of(own.cells[i], block.x[i]);
          ++bin[found];
          value[i] = groups.values[found];
        }
        const Near<0> joined(block, groups, s.columns);
        for (int j = 0; j < joined.number; ++j) {
          const int i = joined.places[j], found = groups.bin_of(joined.cells[i], block.x[i]);
          ++bin[found];
          value[i] += groups.values[found];
        }
        Out* out = grad.values + block.n * grad.row_stride + block.c * grad.column_stride;
        if (stride == 1)
          for (int i = 0; i < block.number; ++i) out[i] = Out(value[i]);
        else
          for (int i = 0; i < block.number; ++i) out[i * stride] = Out(value[i]);
      },
      [&](int64_t n) {
        Out* out = grad.values + n * grad.row_stride;
        for (int64_t c = 0; c < s.columns; ++c) out[c * grad.column_stride] = 0;
      });
}

// The gradient, (rows, columns) with strides in elements.
struct AnyGradient {
  bool is_double;
  void* values;
  int64_t row_stride, column_stride;
};

template <class Out>
void write_of(const Scores& s, const Groups& groups, const AnyGradient& grad, Bins& bins) {
  const Gradient<Out> out{static_cast<Out*>(grad.values), grad.row_stride, grad.column_stride};
  s.by_row() ? write_as<true>(s, groups, out, bins) : write_as<false>(s, groups, out, bins);
}

void write(const Scores& s, const Groups& groups, const AnyGradient& grad, Bins& bins) {
  grad.is_double ? write_of<double>(s, groups, grad, bins) : write_of<float>(s, groups, grad, bins);
}

// From where the height of each column's scores is measured, see rambo_highest.
std::vector<float> bases(int64_t columns, const float* at, const int64_t* bounds) {
  // A block of columns is looked at as a whole, also where it ends after the last one.
  std::vector<float> base(columns + kBlock);
  float lowest = kInfinity;
  for (int64_t g = 0; at && g <= columns; ++g)
    if (bounds[g + 1] > bounds[g]) lowest = std::min(lowest, at[bounds[g]]);
  for (int64_t c = 0; c < columns; ++c) {
    const bool own = at && bounds[c + 1] > bounds[c];
    base[c] = own ? at[bounds[c]] : lowest < kInfinity ? lowest : 0;
  }
  return base;
}

// A height that nearly always more than `size` negatives reach, though not many more: from a sample
// of them. Below all if there are too few to take one.
float guess_cutoff(const Scores& s, const std::vector<float>& base, int64_t size) {
  constexpr int64_t kReach = 64;  // of the sample, how many reach the guess
  const int64_t number = s.rows * s.columns, length = s.by_row() ? s.columns : s.rows;
  const double share = 1.6 * double(size) / double(number);
  const int64_t runs = int64_t(kReach / share) / kFew;
  if (share >= 0.5 || runs * kFew > number) return -kInfinity;
  // In runs of what lies side by side: a single score costs as much as a few.
  std::vector<float> sample;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = number / runs * run;
    int64_t outer = first / length, inner = first % length;
    for (int i = 0; i < kFew; ++i) {
      const int64_t n = s.by_row() ? outer : inner, c = s.by_row() ? inner : outer;
      if (s.gt[n] >= 0 && s.gt[n] != c)
        sample.push_back(s.values[n * s.row_stride + c * s.column_stride] - base[c]);
      if (++inner == length) inner = 0, ++outer;
    }
  }
  if (int64_t(sample.size()) <= kReach) return -kInfinity;
  const auto place = sample.end() - kReach;
  std::nth_element(sample.begin(), place, sample.end());
  return *place;
}

struct Found {
  float height, score;
  int32_t list;
};

// What a thread has found, which shares no line of the cache with another's.
struct alignas(128) Part {
  std::vector<Found> found;
  float cutoff;
};

template <bool kByRow>
void collect_as(const Scores& s, const std::vector<float>& base, int64_t size,
                std::vector<Part>& parts) {
  visit<kByRow>(
      s, int(parts.size()),
      [&](int thread, const Block& block) {
        const float* floor = base.data() + block.c;
        std::vector<Found>& found = parts[thread].found;
        const float least = parts[thread].cutoff;
        const int padded = block.padded();
        float height[kBlock];
        int32_t reaches[kBlock];
        uint8_t places[kBlock + 8];
        for (int i = 0; i < padded; ++i) {
          height[i] = block.x[i] - floor[i * kByRow];
          reaches[i] = height[i] >= least;
        }
        const int number = pick(block, reaches, places);
        for (int j = 0; j < number; ++j) {
          const int i = places[j];
          found.push_back({height[i], block.x[i], int32_t(block.c + i * kByRow)});
        }
        if (int64_t(found.size()) < 4 * size + kBlock) return;
        std::nth_element(found.begin(), found.begin() + size - 1, found.end(),
                         [](const Found& a, const Found& b) { return a.height > b.height; });
        found.resize(size);
        parts[thread].cutoff = std::nextafter(found.back().height, kInfinity);
      },
      [](int64_t) {});
}

// Negatives that reach the cutoff, not all of them: the `size` highest are among them.
std::vector<Found> collect(const Scores& s, const std::vector<float>& base, float cutoff,
                           int64_t size, int threads) {
  std::vector<Part> parts(threads);
  for (Part& part : parts) part.cutoff = cutoff;
  s.by_row() ? collect_as<true>(s, base, size, parts) : collect_as<false>(s, base, size, parts);
  std::vector<Found> all;
  for (const Part& part : parts) all.insert(all.end(), part.found.begin(), part.found.end());
  return all;
}

}  // namespace

extern "C" {

// Negatives of each group at or above each of its thresholds.
void rambo_count(const float* values, int64_t rows, int64_t columns, int64_t row_stride,
                 int64_t column_stride, const int64_t* gt, float high, const float* at,
                 const int64_t* bounds, int max_threads, int64_t* above) {
  const Scores s{values, rows, columns, row_stride, column_stride, gt};
  const Thresholds thresholds{at, bounds, nullptr};
  const Groups groups(thresholds, nullptr, nullptr, nullptr, columns + 1, high);
  Bins bins = groups.bins(threads_for(rows * columns, max_threads));
  count(s, groups, bins);
  from_bins(groups, thresholds, bins, above);
}

// The same where each value names its group.
void rambo_count_listed(const float* values, const int32_t* lists, int64_t number, const float* at,
                        const int64_t* bounds, int64_t num_groups, int max_threads,
                        int64_t* above) {
  const Thresholds thresholds{at, bounds, nullptr};
  const Groups groups(thresholds, nullptr, nullptr, nullptr, num_groups, highest(values, number));
  Bins bins = groups.bins(threads_for(number, max_threads));
  count_listed({values, lists, &number, 1, number}, groups, bins);
  from_bins(groups, thresholds, bins, above);
}

// The gradient of the negatives, and how many are at or above each moved threshold.
void rambo_write(const float* values, int64_t rows, int64_t columns, int64_t row_stride,
                 int64_t column_stride, const int64_t* gt, float high, const float* at,
                 const int64_t* bounds, const double* through, const float* moved,
                 const int64_t* moved_bounds, const double* moved_through, const double* divisor,
                 const double* weight, int is_double, void* grad, int64_t grad_row_stride,
                 int64_t grad_column_stride, int max_threads, int64_t* above) {
  const Scores s{values, rows, columns, row_stride, column_stride, gt};
  const Thresholds before{at, bounds, through}, after{moved, moved_bounds, moved_through};
  const Groups groups(before, &after, divisor, weight, columns + 1, high);
  Bins bins = groups.bins(threads_for(rows * columns, max_threads));
  write(s, groups, {is_double != 0, grad, grad_row_stride, grad_column_stride}, bins);
  from_bins(groups, after, bins, above);
}

// Rows whose class is one of the columns, it, and the key of their score there; returns how many.
int64_t rambo_find(const float* values, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride, const int64_t* gt, int max_threads, int64_t* found_rows,
                   int64_t* found_columns, int64_t* keys) {
  const int threads = threads_for(rows, max_threads);
  std::vector<std::vector<int64_t>> parts(threads);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    const int64_t last = rows * (thread + 1) / threads;
    std::vector<int64_t> part;
    for (int64_t start = rows * thread / threads; start < last; start += kBlock) {
      const int64_t end = std::min(start + kBlock, last);
      int any = 0;
      for (int64_t n = start; n < end; ++n) any |= uint64_t(gt[n]) < uint64_t(columns);
      for (int64_t n = start; any && n < end; ++n)
        if (uint64_t(gt[n]) < uint64_t(columns)) part.push_back(n);
    }
    parts[thread] = std::move(part);
  }
  int64_t found = 0;
  for (const auto& part : parts)
    for (const int64_t n : part) {
      const float score = values[n * row_stride + gt[n] * column_stride] + 0.0f;
      int32_t bits;
      std::memcpy(&bits, &score, sizeof bits);
      bits ^= (bits >> 31) & 0x7FFFFFFF;
      found_rows[found] = n, found_columns[found] = gt[n];
      keys[found++] = (gt[n] << 32) + int64_t(bits) + (int64_t(1) << 31);
    }
  return found;
}

// Sorts positives by key, the last one first in a tie; see Ranked in groups.py.
void rambo_rank(const int64_t* keys, int64_t number, int64_t num_lists, double margin,
                int64_t* order, int64_t* lists, int64_t* rank, double* start, float* at,
                int64_t* bounds) {
  std::vector<Keyed> items(number);
  for (int64_t i = 0; i < number; ++i) items[number - 1 - i] = {keys[i], i};
  sort_keyed(items);
  int64_t list = -1;
  for (int64_t i = 0; i < number; ++i) {
    const int64_t key = items[i].key;
    order[i] = items[i].item;
    lists[i] = std::min(key >> 32, num_lists - 1);  // a key of no list writes to none either
    while (list < lists[i]) bounds[++list] = i;
    int32_t bits = int32_t((key & 0xFFFFFFFF) - (int64_t(1) << 31));
    bits ^= (bits >> 31) & 0x7FFFFFFF;
    float score;
    std::memcpy(&score, &bits, sizeof score);
    start[i] = double(score) - margin;
    at[i] = up_to_float(start[i]);
  }
  while (list < num_lists) bounds[++list] = number;
  for (int64_t i = 0; i < number; ++i) rank[i] = bounds[lists[i] + 1] - i;
}

// The positives after the step start + lambda * slope: their order, and their thresholds in it.
void rambo_move(const double* start, const double* slope, const double* lambda,
                const int64_t* bounds, int64_t num_lists, int64_t* order, float* at) {
  std::vector<Keyed> items;
  const auto moved = [&](int64_t g, int64_t i) {
    const double step = lambda[g] * slope[i];
    return start[i] + step;
  };
  for (int64_t g = 0; g < num_lists; ++g) {
    items.clear();
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i)
      items.push_back({order_code(moved(g, i)), i});
    sort_keyed(items);
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i) {
      order[i] = items[i - bounds[g]].item;
      at[i] = up_to_float(moved(g, order[i]));
    }
  }
}

// Stable order within each segment, by rising value.
void rambo_argsort(const double* values, const int64_t* bounds, int64_t segments, int max_threads,
                   int64_t* order) {
  const int threads = threads_for(8 * bounds[segments], max_threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t g = 0; g < segments; ++g) {
    std::vector<Keyed> items;
    items.reserve(bounds[g + 1] - bounds[g]);
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i)
      items.push_back({order_code(values[i]), i});
    sort_keyed(items);
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i) order[i] = items[i - bounds[g]].item;
  }
}

// lists.rank_lists in one go, for the average precision of one list a group and a single process:
// what takes many small operations there costs more than the counting where scores are few.
// `found` are the keys of the batch's positives, in rows `found_rows`; of those remembered, some
// are below 0: none. `rule` says what `lift` is: that of step.MedianLift (0), the λ of
// step.FixedStep (1), that of step.EachLift (2).
// `at` has room for the positives of all lists, `above` and `change` for those found.
double rambo_average_precision(
    const float* values, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
    const int64_t* gt, float high, const int64_t* found, const int64_t* found_rows, int64_t here,
    const int64_t* stored_keys, int64_t num_stored_keys, const float* stored,
    const int32_t* stored_lists, const int64_t* stored_counts, int64_t stored_rows,
    int64_t stored_size, int per_class, int interclass, double margin, double lift, int rule,
    int log, double beta, int is_double, void* grad, int64_t grad_row_stride,
    int64_t grad_column_stride, int max_threads, float* at, int64_t* bounds, double* losses,
    uint8_t* present, int64_t* above, int64_t* change) {
  const int64_t lists_of_all = columns + 1;
  std::vector<int64_t> keys;
  if (per_class) keys.assign(found, found + here);
  for (int64_t i = 0; i < num_stored_keys; ++i)
    if (stored_keys[i] >= 0) keys.push_back(stored_keys[i]);
  const int64_t joined_first = int64_t(keys.size());
  for (int64_t i = 0; interclass && i < here; ++i)
    keys.push_back((found[i] & 0xFFFFFFFF) + (columns << 32));

  const int64_t number = int64_t(keys.size());
  std::vector<int64_t> order(number), lists(number), rank(number), counted(number), moved(number);
  std::vector<int64_t> still(number), entry_above(number), entry_change(number);
  std::vector<double> start(number), slope(number), value(number), sorted;
  std::vector<double> lambda(lists_of_all), divisor(lists_of_all), weight(lists_of_all);
  const std::vector<double> one(lists_of_all, 1);
  std::vector<double> summand(number), through(number + lists_of_all);
  std::vector<float> moved_at(number);
  const bool each = rule == 2, fixed = rule == 1;
  rambo_rank(keys.data(), number, lists_of_all, margin, order.data(), lists.data(), rank.data(),
             start.data(), at, bounds);
  const Listed listed{stored, stored_lists, stored_counts, stored_rows, stored_size};

  const Scores s{values, rows, columns, row_stride, column_stride, gt};
  const Thresholds before{at, bounds, nullptr}, after{moved_at.data(), bounds, nullptr};
  const int threads = threads_for(rows * columns, max_threads);
  for (int64_t i = 0; each && i < number; ++i) moved_at[i] = up_to_float(start[i] + lift);
  {
    const Groups groups(before, each ? &after : nullptr, one.data(), one.data(), lists_of_all,
                        high);
    Bins bins = groups.bins(threads);
    count(s, groups, bins);
    count_listed(listed, groups, bins);
    from_bins(groups, before, bins, counted.data());
    if (each) from_bins(groups, after, bins, still.data());
  }

  int64_t classes = 0;
  for (int64_t g = 0; g < columns; ++g) classes += bounds[g + 1] > bounds[g];
  double loss = 0;
  for (int64_t g = 0; g < lists_of_all; ++g) {
    const int64_t first = bounds[g], last = bounds[g + 1];
    losses[g] = 0;
    present[g] = first != last;
    if (first == last) continue;
    const double num = double(last - first);
    for (int64_t i = first; i < last; ++i) {  // objectives.average_precision
      const double r_pos = double(rank[i]), r = double(rank[i] + counted[i]);
      losses[g] += summand[i] = (1 - r_pos / r) / num;
      slope[i] = r_pos / (num * r * r);
      entry_above[order[i]] = counted[i];
    }
    weight[g] = g < columns ? 1.0 / double(classes) * (1 - beta) : beta;
    loss += losses[g] * weight[g];
    if (each) continue;
    lambda[g] = lift;
    if (!fixed) {
      sorted.assign(slope.begin() + first, slope.begin() + last);
      const auto middle = sorted.begin() + (last - first - 1) / 2;
      std::nth_element(sorted.begin(), middle, sorted.end());
      lambda[g] = lift / *middle;
    }
    divisor[g] = !fixed && log ? lambda[g] * (1 - losses[g]) : lambda[g];
  }

  const AnyGradient out{is_double != 0, grad, grad_row_stride, grad_column_stride};
  if (each) {
    for (int64_t i = 0; i < number; ++i) {
      const int64_t g = lists[i], passed = counted[i] - still[i], bin = i + g;
      const double pulled = passed ? summand[i] * weight[g] : 0;
      entry_change[order[i]] = -passed;
      value[order[i]] = -pulled;
      through[bin + 1] = through[bin] + (passed ? pulled / passed : 0);
    }
    const Thresholds was{at, bounds, through.data()}, is{moved_at.data(), bounds, through.data()};
    const Groups groups(was, &is, one.data(), one.data(), lists_of_all, high);
    Bins bins = groups.bins(threads);
    write(s, groups, out, bins);
  } else {
    rambo_move(start.data(), slope.data(), lambda.data(), bounds, lists_of_all, moved.data(),
               moved_at.data());
    const Groups groups(before, &after, divisor.data(), weight.data(), lists_of_all, high);
    Bins bins = groups.bins(threads);
    write(s, groups, out, bins);
    count_listed(listed, groups, bins);
    from_bins(groups, after, bins, counted.data());
  }
  for (int64_t i = 0; !each && i < number; ++i) {
    const int64_t entry = order[moved[i]], g = lists[i];
    entry_change[entry] = rank[i] + counted[i] - (rank[moved[i]] + entry_above[entry]);
    value[entry] = double(entry_change[entry]) / divisor[g] * weight[g];
  }
  std::copy_n(entry_above.begin(), number ? here : 0, above);
  std::copy_n(entry_change.begin(), number ? here : 0, change);
  for (int64_t k = 0; k < here; ++k) {
    const double of_class = per_class ? value[k] : 0;
    const double of_all = interclass ? value[joined_first + k] : 0;
    const int64_t n = found_rows[k], place = n * grad_row_stride + gt[n] * grad_column_stride;
    if (is_double)
      static_cast<double*>(grad)[place] = of_class + of_all;
    else
      static_cast<float*>(grad)[place] = float(of_class + of_all);
  }
  return loss;
}

// The `size` negatives that lie highest above the lowest threshold of their column or, where that
// has none, of any; above 0 where there is no threshold. Returns how many there are.
int64_t rambo_highest(const float* values, int64_t rows, int64_t columns, int64_t row_stride,
                      int64_t column_stride, const int64_t* gt, const float* at,
                      const int64_t* bounds, int64_t size, int max_threads, float* scores,
                      int32_t* lists) {
  if (size == 0) return 0;
  const Scores s{values, rows, columns, row_stride, column_stride, gt};
  const std::vector<float> base = bases(columns, at, bounds);
  const int threads = threads_for(rows * columns, max_threads);
  const float cutoff = guess_cutoff(s, base, size);
  std::vector<Found> found = collect(s, base, cutoff, size, threads);
  // The guess costs time where it is too high, never exactness.
  if (int64_t(found.size()) < size && cutoff > -kInfinity)
    found = collect(s, base, -kInfinity, size, threads);

  // Those above the height that the last of them has, and as many that have it as there is room.
  float last = -kInfinity;
  int64_t level = size;
  if (int64_t(found.size()) > size) {
    std::vector<float> heights(found.size());
    for (size_t i = 0; i < found.size(); ++i) heights[i] = found[i].height;
    const auto place = heights.begin() + size - 1;
    std::nth_element(heights.begin(), place, heights.end(), std::greater<float>());
    last = *place;
    level -= std::count_if(heights.begin(), place, [&](float height) { return height > last; });
  }
  int64_t kept = 0;
  for (const Found& one : found) {
    if (one.height < last || (one.height == last && level-- <= 0)) continue;
    scores[kept] = one.score, lists[kept++] = one.list;
  }
  return kept;
}

}  // extern "C"
