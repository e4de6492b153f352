// The CUDA executor's inner parts, shared by its host files.
//
// Threads: `leader` takes steps from the queue, fills the step's tables and queues the work on its device, rank 0's, while the other
// ranks' threads (ranks.cu) queue theirs; `reporter` waits
// for a step's end and reports it.
#ifndef MOB_CUDA_EXEC_H
#define MOB_CUDA_EXEC_H

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define _Noreturn [[noreturn]]
extern "C" {
#include "engine/backend.h"
#include "engine/model/dummy.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
}
#include "engine/cuda/comm.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/sampling.h"
#include "engine/cuda/step_ends.h"

namespace mob {

#define CU_TRY(call)                                                                                \
  do {                                                                                              \
    cudaError_t cu_try_ = (call);                                                                   \
    if (cu_try_ != cudaSuccess) return mob::cuda_failed(cu_try_, #call);                            \
  } while (0)
mob_status cuda_failed(cudaError_t error, const char *what);

// ---- weights.cu
// A merged matrix: parts stand one below the other, each beginning at a multiple of 64 rows.
struct Group {
  int64_t rows[3] = {}, cols = 0; // of the parts on this rank
  int at[3] = {};                 // first output of a part
  bool f8 = true;                 // every part is FP8 and its tiles lie in whole scale blocks
  int count = 1;                  // matrices (experts)
  Matrix m = {};
};
enum GroupId { G_A, G_Q, G_QKV, G_KV_B, G_O, G_DENSE_UP, G_DENSE_DOWN, G_EXPERT_UP, G_EXPERT_DOWN, G_ROUTER, G_HEAD, G_COUNT };

struct Layer {
  Group g[G_COUNT];
  float *v[MOB_W_COUNT] = {}; // norms and biases, fp32
  int64_t v_rows[MOB_W_COUNT] = {};
  bf16 *kv_b = nullptr;       // plain rows, where the packed form does not serve
  uint8_t *uk = nullptr;      // UK^T tiles
  bf16 *router = nullptr;     // plain rows
  float *a_bias = nullptr;    // q_a's and kv_a's biases at the places of the merged matrix
};

constexpr int kRing = 4, kLogitRows = kExchangeRows, kAttendRows = 512, kGraphRows = 256;
static_assert(kRing <= kTableSlots, "take_tables() looks at so many");

struct OneExpert { // a list of one, that has every row; in device memory
  int active = 1, id = 0, row[kFewDown] = {0, 1};
  float weight[kFewDown] = {1, 1};
};

struct Rank {
  int index = 0, device = 0, sms = 0; // index: among the ranks here
  int number = 0;                     // of the stage's ranks, which may be in several processes
  int heads = 0, kv_heads = 0;
  int first_expert = 0, experts = 0; // routed experts held here; all, unless they are whole on ranks
  cudaStream_t stream = nullptr;
  cudaEvent_t rows_taken = nullptr; // from the stage in front, if there is one
  std::vector<Layer> layers;
  Layer outer;
  bf16 *embed = nullptr; // this rank's part of the vocabulary
  std::vector<void *> blocks; // device memory to free
  uint8_t *cache = nullptr;
  size_t layer_cache = 0;
  float *inv_freq = nullptr;
  Waits *waits = nullptr;
  Peers peers = {};
  uint8_t *workspace = nullptr;
  int *bad = nullptr;
  // workspace (memory.cu)
  float *x, *norm_f32, *logits, *router_logits, *router_words, *expert_weight, *latent;
  bf16 *a, *q, *attn, *y, *up, *expert_y, *absorbed;
  uint8_t *tiles;
  MlaParts parts;
  uint8_t *latent_records, *kv_tiles, *query_tiles;
  float2 *angles; // of prefill_prepare
  float *gqa_partial; // of attend_gqa
  uint8_t *hidden_records, *split_records, *q_records, *attn_records, *gathered, *act_records, *head_records;
  int *expert_ids, *expert_row, *row_place, *active;
  TokenTile *token_tiles;
  ExpertRows *rows_of;
  unsigned long long *best;
  int *ids, *last_token, *meta;
  int *staged, *turn;               // tables of kRing steps; whose turn it is
  cudaStream_t copies = nullptr;    // of tables, beside the step before
  cudaEvent_t staged_in[kRing] = {};
  OneExpert *one_expert;
  uint8_t *sampler_block;
  Sampler sampler; // where the logits of the last layer are
  uint8_t *inbox;     // several ranks, all here
  float *own_logits, *gathered_logits; // ranks in several processes: of this rank's part of the vocabulary; of all parts, some rows
  unsigned long long *keys;
  LinearScratch scratch;
  std::map<int, cudaGraphExec_t> graphs; // by 4 * padded rows + 2 * whether few keys are read otherwise + whether rows are more than plain
};

// Where a step's tables stand in `meta` (ints), behind a StepHead.
struct MetaLayout {
  int token, position, table, row, slot, wanted, tile_row, pairs, key_pages, pages;
};

// Which rows of a step are computed 128 queries at a time (attention_prefill.cu, attention_gqa_prefill.cu), and which each by itself.
struct PrefillPlan {
  int pairs = 0, blocks = 0, key_blocks = 0; // pairs and blocks of queries, blocks of keys
  std::vector<std::pair<int, int>> absorbed; // the others: [first row, end)
  bool single = false;                       // every row is a sequence of its own
  bool few_keys = false;                     // all rows together read kFewKeys or less
};

struct SlotState {
  bool open = false;
  bool plain = true;     // greedy without masks, penalties, log probabilities
  bool logprobs = false; // of sampled tokens
  std::vector<int32_t> prompt; // where log probabilities of its tokens are wanted
  int32_t last = -1;   // sampled by another stage
};

struct LogitRow {
  uint32_t row, slot;
  bool sample;
  uint32_t position; // of the prompt token whose log probability is wanted
  bool logprobs;
};

struct Job {
  mob_step_t step;
  std::vector<mob_seq_open_t> open;
  std::vector<mob_seq_step_t> seqs;
  std::vector<uint32_t> close;
  std::deque<std::vector<int32_t>> ints;
  std::deque<std::vector<mob_logit_bias_t>> biases;
  mob_step_fn done;
  void *arg;
  std::vector<LogitRow> logits;
  bool plain = true;     // all of them: no slot's parameters act
  bool logprobs = false; // wanted of one of them
  int ring = -1;
};

struct RingSlot { // of steps under way
  int *ids = nullptr;  // pinned
  SampleResult *results = nullptr; // pinned, in place of ids where log probabilities are wanted
  StepTimes *times = nullptr;      // pinned
  SampleStage stage;   // pinned
  cudaEvent_t end;
  bool busy = false;
};

struct PendingIds {
  uint64_t step;
  std::vector<uint32_t> slots;
};

struct RankTeam { // threads of the ranks but the first
  std::vector<std::thread> threads;
  std::mutex lock;
  std::condition_variable wake, done;
  std::atomic<uint64_t> round{0}; // of work
  std::atomic<int> busy{0};
  bool ending = false;
  const std::function<mob_status(Rank *rank)> *task = nullptr;
  mob_status status = MOB_OK; // of the round: the first failure
  std::string why;
};

struct Exec {
  mob_exec_spec_t spec;
  const mob_model_desc_t *desc;
  std::vector<int> devices;
  std::vector<Rank> ranks; // those of the stage that are here
  struct Across *across = nullptr; // where there are others elsewhere (across.h)
  RankTeam team;
  int *halt = nullptr;     // pinned: the host's word of waits.cuh, then what each rank missed
  bool mla, fast_mla;      // 512 / 64 / 128 / 128 kernels
  bool fast_gqa;           // heads of 64 or 128, up to 16 a key head
  int kv_width;
  int64_t pages = 0;
  uint64_t file_bytes = 0;
  MetaLayout layout;            // of the step being queued
  int *tables = nullptr;        // pinned: of kRing steps
  int table_ints = 0;           // of a step, at most
  uint64_t tables_queued = 0;   // steps
  int max_pairs = 0, max_key_blocks = 0; // of a prefill plan
  PrefillPlan plan; // of the step being queued
  bool loaded = false;
  std::vector<SlotState> slots;
  RingSlot ring[kRing];
  std::deque<PendingIds> pending;
  float *host_x = nullptr;      // pinned, with room for a header in front
  int max_logit_rows = 0;       // of a step
  int max_rows = 0;             // of activations, padding included
  // queues
  std::mutex lock;
  std::condition_variable wake, idle;
  std::deque<Job *> queue, reports;
  bool closing = false, reporting_ends = false;
  int under_way = 0;
  mob_status failed = MOB_OK;
  std::string why;
  std::atomic<bool> aborted{false};
  bool profile = false;
  int profile_rows = 0, profile_steps = 0; // rows of the steps that the table is of
  std::thread leader, reporter;
};

mob_status weights_bind(Exec *exec);
uint64_t weights_bytes(const Exec *exec, const Rank *rank);
mob_status weights_load(Exec *exec, void (*progress)(void *arg, const mob_load_progress_t *p), void *arg);
// memory.cu
uint64_t workspace_bytes(const Exec *exec, const Rank *rank);
mob_status workspace_alloc(const Exec *exec, Rank *rank);
mob_status memory_plan(Exec *exec, mob_memory_plan_t *out);
// forward.cu: the step's tables to a rank; a stage whose ranks are all here does that with the layers
void step_begins(const Exec *exec, const Rank *rank);
// Queues the layers of `rows` rows (padded to what graphs need by the caller), then, on the last stage, `logit_rows` of them
// (of the step's list) through the head to ids (and results, unless all are `plain`)
mob_status forward(Exec *exec, Rank *rank, int rows, int logit_rows, bool plain);
void sample_slots(Exec *exec, Rank *rank, int first, int rows); // by their slots' parameters, on rank 0, where all logits are
mob_status forward_graph(Exec *exec, Rank *rank, int rows, bool plain); // layers and head of a pure decode step
// routes.cu: for checks. What the router of a layer of the stage chose goes to the host, and what is given instead to the device, with
// weights; then the plan must be made (again). And how many experts the plan has.
mob_status routes_exchange(const Exec *exec, Rank *rank, int layer, const RouterSpec &spec, const Matrix &router, const Records &split,
                           int weight_ld, int rows);
mob_status routes_count(const Exec *exec, const Rank *rank, int layer, int shared, bool few);
// profile.cu
bool profile_start();
void profile_this_thread(); // the launches of others are not counted
void profile_step(cudaStream_t stream);
void profile_reset();
void profile_print(int steps);
// job.cu
const int32_t *keep_ints(Job *job, const int32_t *data, uint32_t count); // a copy that lives as long as the job
mob_status check_step(const Exec *exec, const mob_step_t *step);
Job *copy_step(const mob_step_t *step, mob_step_fn done, void *arg);
mob_status prepare_step(Exec *exec, Job *job); // opens slots and lists the rows whose logits are wanted
// tables.cu
// Of a step of `rows` rows and `logit_rows` of their list. `planned`: with a prefill plan's tables. For a graph this follows from its rows.
MetaLayout tables_layout(const Exec *exec, int rows, int logit_rows, bool planned);
int tables_most(const Exec *exec); // ints of any step's
int graph_rows(const Exec *exec, const Job *job); // of the graph that serves the step: 1, 2, 4, 8, then every eighth up to 256; 0: none
int fill_tables(const Exec *exec, const Job *job, int rows, int *meta); // returns how many ints are used
// Sequences with at least 64 rows (of grouped queries: 32) are computed by pairs of blocks, as long as there is room for them.
void plan_prefill(Exec *exec, const Job *job, bool allowed, int *meta);
// The rows whose logits are wanted, and what of them.
void fill_logit_rows(const Exec *exec, const Job *job, int padded, int *meta);
// stages.cu
mob_status resolve_tokens(Exec *exec, Job *job); // first of several stages: ids that the last one sampled replace MOB_TOKEN_PREVIOUS
mob_status receive_rows(Exec *exec, Job *job);
mob_status take_rows(Exec *exec, Rank *rank, const Job *job); // what was received, to a rank
mob_status send_rows(Exec *exec, Job *job);
mob_status send_ids(Exec *exec, const Job *job, const int32_t *ids);
// comm.cu
mob_status comm_open(Exec *exec);
uint32_t comm_wait_ticks();     // clock_ticks() that a wait on the device may take
void comm_connect(Exec *exec); // when all ranks have their workspace
void comm_halt(Exec *exec);    // from any thread: steps under way end on every GPU, whatever they wait for
mob_status comm_failure(const Exec *exec); // MOB_OK, or why a wait ended without what it waited for
void comm_close(Exec *exec);
// ranks.cu
void ranks_start(Exec *exec);
// Runs `task` for every rank, rank 0's on this thread, the others' beside it; the first failure. One caller at a time.
mob_status each_rank(Exec *exec, const std::function<mob_status(Rank *rank)> &task);
void ranks_end(Exec *exec);
// step.cu
void leader_main(Exec *exec);
void reporter_main(Exec *exec);
void exec_abort(Exec *exec);

} // namespace mob

#endif
