// bin_negatives for a CPU, see __init__.py: one pass over the scores, on several threads. It needs
// memory for the edges, not for the scores. The interface is C: any C++17 compiler can build it.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kBlock = 128;             // scores that are processed together
constexpr int kUnrolled = 2;            // edges of a cell that are compared without a branch
constexpr int64_t kCellsPerEdge = 2;    // cells of a segment's table, per edge
constexpr int64_t kMaxCells = 1 << 16;  // most cells of one segment
constexpr int64_t kMinPerThread = 1 << 12;
const float kInfinity = __builtin_inff();

// The float32 in the low 32 bits of a key, see sort_keys.py.
float score_of(int64_t key) {
  auto bits = int32_t(uint32_t(key) ^ 0x80000000u);
  bits ^= (bits >> 31) & 0x7FFFFFFF;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// The bins of all segments. In a segment, bin 0 is for scores below all edges, and bin k for scores
// from edge k - 1 up to the next. A table over the range of the edges gives most bins by a lookup.
// A higher score never has a lower cell. So the edges of lower cells are at or below the score, and
// those of higher cells above it. Edges in the score's cell are compared, so the result is exact.
struct Segments {
  struct Range {  // cell = first_cell + clamp((score - low) * scale + 1, 0, top)
    std::vector<float> lowest, low, scale, top;  // lowest: lowest edge, infinite without edges
    std::vector<int32_t> first_cell;
  };
  Range of_column;              // of each column, repeated so that a block can start at any column
  Range of_all;                 // of the segment of all columns, repeated for a block
  std::vector<float> edges;     // of each segment, then a few infinite edges
  std::vector<double> values;   // of each bin
  std::vector<int64_t> begin;   // of each segment in edges and values
  std::vector<int32_t> number;  // number of edges of each segment
  std::vector<int32_t> cells;   // for each cell the bin of a score below all edges of the cell

  // No score is above max_score, so the tables need no cells for edges above max_score.
  Segments(const int64_t* keys, int64_t num_keys, const double* edge_values, int64_t num_columns,
           float max_score) {
    int64_t k = 0;
    for (int64_t g = 0; g <= num_columns; ++g) {
      begin.push_back(int64_t(edges.size()));
      values.push_back(0);
      for (; k < num_keys && keys[k] >> 32 == g; ++k) {
        edges.push_back(score_of(keys[k]));
        values.push_back(edge_values ? edge_values[k] : 0);
      }
      number.push_back(int32_t(int64_t(edges.size()) - begin[g]));
      edges.insert(edges.end(), kUnrolled + 1, kInfinity);
      values.resize(edges.size());
      make_cells(g < num_columns ? of_column : of_all, g, max_score);
    }
    const auto repeat = [](auto& column, int64_t size) {
      for (int64_t i = 0; int64_t(column.size()) < size; ++i) column.push_back(column[i]);
    };
    for (Range* range : {&of_column, &of_all}) {
      const int64_t size = range == &of_column ? num_columns + kBlock : kBlock;
      for (auto* column : {&range->lowest, &range->low, &range->scale, &range->top})
        repeat(*column, size);
      repeat(range->first_cell, size);
    }
  }

  int32_t bin_of(int32_t cell, float x) const {
    const int32_t lowest_bin = cells[cell];
    const float* next = edges.data() + lowest_bin;
    if (__builtin_expect(x >= next[kUnrolled], 0)) return search(cell, x);
    int32_t bin = lowest_bin;
    for (int k = 0; k < kUnrolled; ++k) bin += x >= next[k];
    return bin;
  }

 private:
  __attribute__((noinline)) int32_t search(int32_t cell, float x) const {
    const float* all = edges.data();
    return int32_t(std::upper_bound(all + cells[cell], all + cells[cell + 1], x) - all);
  }

  void make_cells(Range& range, int64_t g, float max_score) {
    const float* own = &edges[begin[g]];
    const int32_t n = number[g];
    // The first cell is for scores below all edges.
    const int64_t size = n ? std::min(kCellsPerEdge * n + 2, kMaxCells) : 1;
    const float low = n ? own[0] : 0, width = n ? std::min(own[n - 1], max_score) - low : 0;
    const float scale = width > 0 ? float(size - 2) / width : 0;
    range.lowest.push_back(own[0]);
    range.low.push_back(low);
    range.scale.push_back(scale);
    range.top.push_back(float(size - 1));
    range.first_cell.push_back(int32_t(cells.size()));
    int32_t k = 0;
    for (int64_t cell = 0; cell < size; ++cell) {
      cells.push_back(int32_t(begin[g] + k));
      while (k < n && std::min((own[k] - low) * scale + 1, float(size - 1)) < float(cell + 1)) ++k;
    }
    cells.push_back(int32_t(begin[g] + n));  // where the edges of the last cell end
  }
};

// Scores that are adjacent in memory. The unused entries of a short block are not negatives.
struct Block {
  float x[kBlock];
  uint8_t negative[kBlock];  // 1 or 0
};

// Counts each negative of a block in its bin, and adds the bin's value to the negative's `value`.
// `range` has the segments; the entry at `first` belongs to the first score of the block.
void bin_block(const Block& block, const Segments& segments, const Segments::Range& range,
               int64_t first, int64_t* counts, double* value) {
  const float *lowest = &range.lowest[first], *low = &range.low[first];
  const float *scale = &range.scale[first], *top = &range.top[first];
  const int32_t* first_cell = &range.first_cell[first];
  int any = 0;
  for (int i = 0; i < kBlock; ++i) any |= block.x[i] >= lowest[i];
  if (!any) return;
  int32_t cells[kBlock], reaches[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    float place = (block.x[i] - low[i]) * scale[i] + 1;
    place = place < top[i] ? place : top[i];  // NaN gets the highest cell
    cells[i] = first_cell[i] + int32_t(place > 0 ? place : 0);
  }
  uint8_t marks[kBlock], places[kBlock];
  for (int i = 0; i < kBlock; ++i) reaches[i] = block.x[i] >= lowest[i];
  for (int i = 0; i < kBlock; ++i) marks[i] = uint8_t(reaches[i]) & block.negative[i];
  int number = 0;
  for (int i = 0; i < kBlock; ++i) {  // without a branch; few of the scores are counted
    places[number] = uint8_t(i);
    number += marks[i];
  }
  for (int j = 0; j < number; ++j) {
    const int i = places[j];
    const int32_t bin = segments.bin_of(cells[i], block.x[i]);
    ++counts[bin];
    value[i] += segments.values[bin];
  }
}

// Bins the scores from `start` to `end`. Writes their gradient if grad is not null.
template <class Out>
void bin_scores(const float* scores, int64_t start, int64_t end, int64_t columns,
                const int64_t* gt_classes, const Segments& segments, Out* grad, int64_t* counts) {
  Block block{};
  for (int64_t place = start; place < end; place += kBlock) {
    const int64_t size = std::min<int64_t>(kBlock, end - place);
    std::memcpy(block.x, scores + place, size * sizeof(float));
    std::memset(block.negative, 0, kBlock);
    std::memset(block.negative, 1, size);
    int64_t row = place / columns;
    const int64_t first_column = place - row * columns;
    for (int64_t at = -first_column; at < size; at += columns, ++row) {
      const int64_t gt = gt_classes[row], positive = at + gt;
      if (gt < 0)
        std::memset(block.negative + std::max<int64_t>(at, 0), 0,
                    std::min(at + columns, size) - std::max<int64_t>(at, 0));
      else if (gt < columns && positive >= 0 && positive < size)
        block.negative[positive] = 0;
    }
    double value[kBlock] = {};
    bin_block(block, segments, segments.of_column, first_column, counts, value);
    bin_block(block, segments, segments.of_all, 0, counts, value);
    for (int64_t i = 0; grad && i < size; ++i) grad[place + i] = Out(value[i]);
  }
}

}  // namespace

// The scores and the gradient are contiguous. edge_values and grad are null if no gradient is
// needed. is_double: grad points to double, otherwise to float.
extern "C" void rambo_bin_negatives(const float* scores, int64_t rows, int64_t columns,
                                    const int64_t* gt_classes, float max_score,
                                    const int64_t* edges, int64_t num_edges,
                                    const double* edge_values, int is_double, void* grad,
                                    int max_threads, int64_t* counts) {
  const Segments segments(edges, num_edges, edge_values, columns, max_score);
  const int64_t size = rows * columns;
  const auto threads = int(std::clamp<int64_t>(size / kMinPerThread, 1, max_threads));
  std::vector<std::vector<int64_t>> bins(threads, std::vector<int64_t>(segments.edges.size()));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int t = 0; t < threads; ++t) {
    const int64_t start = size * t / threads, end = size * (t + 1) / threads;
    if (is_double)
      bin_scores(scores, start, end, columns, gt_classes, segments, static_cast<double*>(grad),
                 bins[t].data());
    else
      bin_scores(scores, start, end, columns, gt_classes, segments, static_cast<float*>(grad),
                 bins[t].data());
  }
  for (int64_t g = 0; g <= columns; ++g) {
    int64_t at_or_above = 0;
    for (int64_t k = segments.number[g]; k > 0; --k) {
      for (const auto& of_thread : bins) at_or_above += of_thread[segments.begin[g] + k];
      counts[k - 1] = at_or_above;
    }
    counts += segments.number[g];
  }
}
