// The threads of a stage's ranks. Rank 0's work is done by the thread that asks; each other rank has one, its GPU current, which
// looks for work a little while before it sleeps, so that all GPUs begin a step within microseconds of one another.
#include "engine/cuda/exec.h"

namespace mob {
namespace {

constexpr uint64_t kLookNs = 100 * 1000; // before sleeping

uint64_t next_round(RankTeam *team, uint64_t seen) {
  const uint64_t until = mob_now_ns() + kLookNs;
  while (team->round.load(std::memory_order_acquire) == seen && mob_now_ns() < until) {
  }
  if (team->round.load(std::memory_order_acquire) == seen) {
    std::unique_lock<std::mutex> hold(team->lock);
    team->wake.wait(hold, [&] { return team->round.load() != seen; });
  }
  return team->round.load(std::memory_order_acquire);
}

void run_task(Exec *exec, Rank *rank) {
  RankTeam *team = &exec->team;
  const mob_status status = (*team->task)(rank);
  if (status != MOB_OK) {
    std::lock_guard<std::mutex> hold(team->lock);
    if (team->status == MOB_OK) {
      team->status = status;
      team->why = mob_errmsg();
    }
    comm_halt(exec); // the others may wait for this one, on their GPUs
  }
}

void follower_main(Exec *exec, Rank *rank) {
  RankTeam *team = &exec->team;
  cudaSetDevice(rank->device);
  uint64_t seen = 0;
  for (;;) {
    seen = next_round(team, seen);
    if (team->ending) return;
    run_task(exec, rank);
    if (team->busy.fetch_sub(1, std::memory_order_acq_rel) != 1) continue;
    std::lock_guard<std::mutex> hold(team->lock);
    team->done.notify_all();
  }
}

void new_round(RankTeam *team) {
  std::lock_guard<std::mutex> hold(team->lock);
  team->round.fetch_add(1, std::memory_order_acq_rel);
  team->wake.notify_all();
}

} // namespace

void ranks_start(Exec *exec) {
  for (size_t i = 1; i < exec->ranks.size(); i++) exec->team.threads.emplace_back(follower_main, exec, &exec->ranks[i]);
}

mob_status each_rank(Exec *exec, const std::function<mob_status(Rank *rank)> &task) {
  RankTeam *team = &exec->team;
  team->status = MOB_OK;
  team->task = &task;
  team->busy = (int)team->threads.size();
  if (!team->threads.empty()) new_round(team);
  run_task(exec, &exec->ranks[0]);
  std::unique_lock<std::mutex> hold(team->lock);
  team->done.wait(hold, [&] { return team->busy.load(std::memory_order_acquire) == 0; });
  return team->status == MOB_OK ? MOB_OK : mob_fail(team->status, "%s", team->why.c_str());
}

void ranks_end(Exec *exec) {
  RankTeam *team = &exec->team;
  team->ending = true;
  new_round(team);
  for (std::thread &t : team->threads) t.join();
  team->threads.clear();
}

} // namespace mob
