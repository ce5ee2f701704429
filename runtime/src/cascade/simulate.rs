//! A cluster that is not there: the units of many runs on many workers, as events in simulated time.
//!
//! The rules are those of the executor and of the queue: a unit is given out when what it reads is there and it is not too far
//! ahead of the video, first come, first served; a worker fetches what it has not kept, runs the unit and stores what it made;
//! the coordinator fetches that and goes on. Transfers take their turn on the links of the worker, of the coordinator and of the
//! servers, each way by itself. Several servers share the runs, and each has its part of the workers: what such a worker fetches
//! from another server passes both. A worker that dies loses its unit to another after the lease.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet, VecDeque};

use serde::Serialize;

use super::estimate::Costs;
use super::executor::{ahead, key};
use super::layout::{Kind, Layout};
use crate::noise::TorchRng;

/// Nanoseconds.
type Time = u64;

/// Workers, links and runs of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fleet {
    /// Workers; each runs one unit at a time.
    pub workers: usize,
    /// Runs of the plan, each with a coordinator on a machine of its own; all begin at once.
    pub runs: usize,
    /// Units of one run that are given out at once.
    pub in_flight: usize,
    /// Bytes a second of a worker's or a coordinator's link, each way.
    pub link: f64,
    /// Servers of the queue, at least 1.
    pub servers: usize,
    /// Bytes a second of the link of each server, each way.
    pub server: f64,
    /// Seconds from a message to its answer.
    pub latency: f64,
    /// Bytes of frames that a worker keeps for later units.
    pub cache: usize,
    /// Mean seconds from the start of a worker to its death; it does not die when absent.
    pub dies_after: Option<f64>,
    /// Seconds until a dead worker is back, with nothing loaded.
    pub away: f64,
    /// Seconds until the unit of a dead worker is given to another.
    pub lease: f64,
    /// Seed of the deaths.
    pub seed: u64,
}

/// What a cluster did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// Workers.
    pub workers: usize,
    /// Seconds from the start to the last frame of the last video.
    pub seconds: f64,
    /// Seconds that all units take, once each, on one worker.
    pub work: f64,
    /// Seconds of the longest chain of units of one run that wait for each other: no number of workers is faster.
    pub chain: f64,
    /// Share of the time of all workers that they spent on units which came to their end.
    pub utilisation: f64,
    /// Units that came to their end.
    pub units: usize,
    /// Units that were begun again because a worker died.
    pub repeated: usize,
    /// Bytes of artefacts that workers fetched, that they stored, and that coordinators fetched.
    pub traffic: [u64; 3],
    /// Share of the time in which the links of the busiest server were in use: to it, from it.
    pub server: [f64; 2],
    /// Share of the time in which the busiest coordinator's link was in use.
    pub coordinator: f64,
    /// Messages of the queue a second: orders, answers, their acknowledgements.
    pub messages: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A worker has what its unit reads, and begins; of so many lives.
    Begins {
        worker: usize,
        life: usize,
    },
    /// A worker has run its unit.
    Computed {
        worker: usize,
        life: usize,
    },
    /// A worker's unit is stored.
    Ends {
        worker: usize,
        life: usize,
    },
    /// A coordinator has what a unit made.
    Arrives {
        run: usize,
        unit: usize,
    },
    /// A unit is in the queue.
    Queued {
        run: usize,
        unit: usize,
        again: bool,
    },
    Dies {
        worker: usize,
    },
    Returns {
        worker: usize,
    },
}

/// What is the same for all runs.
struct Shape<'a> {
    layout: &'a Layout,
    seconds: Vec<f64>,
    /// Seconds to load the network of each stage.
    loads: Vec<f64>,
    bytes: Vec<usize>,
    sources: Vec<Vec<usize>>,
    dependents: Vec<Vec<usize>>,
    waits: Vec<usize>,
    ahead: Vec<usize>,
    chain: f64,
}

impl<'a> Shape<'a> {
    fn new(layout: &'a Layout, costs: &Costs, in_flight: usize) -> Self {
        let cost = |kind: Kind| costs.stages.iter().find(|c| c.stage == kind.name());
        let seconds = layout.units.iter().enumerate().map(|(unit, u)| {
            let stage = &layout.stages[u.stage];
            let steps = if stage.kind == Kind::Video { layout.shown(unit).len() } else { stage.steps };
            cost(stage.kind).map_or(0.0, |c| c.seconds * steps as f64)
        });
        let seconds: Vec<f64> = seconds.collect();
        let bytes = layout.units.iter().map(|u| {
            let span = u.writes.as_ref();
            span.map_or(0, |s| s.frames.len() * layout.streams[s.stream].shape.iter().product::<usize>() * 4)
        });
        let mut dependents = vec![vec![]; layout.units.len()];
        let mut ends = vec![0.0f64; layout.units.len()];
        let mut waits = vec![];
        for unit in 0..layout.units.len() {
            let before = layout.dependencies(unit);
            ends[unit] = seconds[unit] + before.iter().map(|&d| ends[d]).fold(0.0, f64::max);
            waits.push(before.len());
            for d in before {
                dependents[d].push(unit);
            }
        }
        Self {
            layout,
            loads: layout.stages.iter().map(|s| cost(s.kind).map_or(0.0, |c| c.first)).collect(),
            bytes: bytes.collect(),
            sources: (0..layout.units.len()).map(|unit| layout.sources(unit)).collect(),
            dependents,
            waits,
            ahead: ahead(layout, in_flight),
            chain: ends.iter().copied().fold(0.0, f64::max),
            seconds,
        }
    }
}

/// One way of a link: transfers take their turn.
#[derive(Clone, Default)]
struct Link {
    free: Time,
    used: Time,
}

impl Link {
    /// When so many bytes are through.
    fn pass(&mut self, now: Time, bytes: usize, rate: f64) -> Time {
        let takes = time(bytes as f64 / rate);
        self.free = self.free.max(now) + takes;
        self.used += takes;
        self.free
    }
}

#[derive(Clone)]
struct Run {
    waits: Vec<usize>,
    ready: BTreeSet<(usize, usize, usize)>,
    given: usize,
    written: usize,
    left: usize,
    link: Link,
}

#[derive(Clone, Default)]
struct Worker {
    /// Run and unit.
    unit: Option<(usize, usize)>,
    lives: usize,
    loaded: HashSet<usize>,
    kept: HashSet<(usize, usize)>,
    oldest: VecDeque<(usize, usize)>,
    bytes: usize,
    link: [Link; 2],
}

impl Worker {
    fn keep(&mut self, what: (usize, usize), bytes: usize, limit: usize, all: &[usize]) {
        if !self.kept.insert(what) {
            return;
        }
        self.oldest.push_back(what);
        self.bytes += bytes;
        while self.bytes > limit {
            let Some(old) = self.oldest.pop_front() else { break };
            self.kept.remove(&old);
            self.bytes -= all[old.1];
        }
    }
}

struct Cluster<'a> {
    fleet: &'a Fleet,
    shape: Shape<'a>,
    now: Time,
    events: BinaryHeap<Reverse<(Time, usize, Event)>>,
    number: usize,
    queue: VecDeque<(usize, usize)>,
    idle: Vec<usize>,
    runs: Vec<Run>,
    workers: Vec<Worker>,
    servers: Vec<[Link; 2]>,
    rng: TorchRng,
    busy: f64,
    units: usize,
    repeated: usize,
    traffic: [u64; 3],
    messages: u64,
    left: usize,
}

/// Runs a plan on a cluster, in simulated time.
pub fn simulate(layout: &Layout, costs: &Costs, fleet: &Fleet) -> Simulated {
    let shape = Shape::new(layout, costs, fleet.in_flight);
    let work = fleet.runs as f64 * (0..layout.units.len()).map(|u| away(layout, u) * shape.seconds[u]).sum::<f64>();
    let ready = (0..layout.units.len()).filter(|&u| shape.waits[u] == 0).map(|u| key(layout, u)).collect();
    let left = layout.units.len();
    let run = Run { waits: shape.waits.clone(), ready, given: 0, written: 0, left, link: Link::default() };
    let mut cluster = Cluster {
        fleet,
        now: 0,
        events: BinaryHeap::new(),
        number: 0,
        queue: VecDeque::new(),
        idle: (0..fleet.workers).rev().collect(),
        runs: vec![run; fleet.runs],
        workers: vec![Worker::default(); fleet.workers],
        servers: vec![Default::default(); fleet.servers.max(1)],
        rng: TorchRng::seeded(fleet.seed),
        busy: 0.0,
        units: 0,
        repeated: 0,
        traffic: [0; 3],
        messages: 0,
        left: fleet.runs,
        shape,
    };
    cluster.go();
    let seconds = (cluster.now as f64 / 1e9).max(f64::MIN_POSITIVE);
    let share = |link: &Link| link.used as f64 / 1e9 / seconds;
    Simulated {
        workers: fleet.workers,
        seconds,
        work,
        chain: cluster.shape.chain,
        utilisation: cluster.busy / (seconds * fleet.workers.max(1) as f64),
        units: cluster.units,
        repeated: cluster.repeated,
        traffic: cluster.traffic,
        server: [0, 1].map(|way| cluster.servers.iter().map(|s| share(&s[way])).fold(0.0, f64::max)),
        coordinator: cluster.runs.iter().map(|run| share(&run.link)).fold(0.0, f64::max),
        messages: cluster.messages as f64 / seconds,
    }
}

fn away(layout: &Layout, unit: usize) -> f64 {
    if layout.is_away(unit) { 1.0 } else { 0.0 }
}

fn time(seconds: f64) -> Time {
    (seconds * 1e9) as Time
}

impl Cluster<'_> {
    fn go(&mut self) {
        for worker in 0..self.fleet.workers {
            self.mortal(worker);
        }
        for run in 0..self.fleet.runs {
            self.give(run);
        }
        while self.left > 0 {
            let Some(Reverse((now, _, event))) = self.events.pop() else { return };
            self.now = now;
            self.handle(event);
        }
    }

    fn at(&mut self, time: Time, event: Event) {
        self.number += 1;
        self.events.push(Reverse((time.max(self.now), self.number, event)));
    }

    fn latency(&self) -> Time {
        time(self.fleet.latency)
    }

    /// A worker will die.
    fn mortal(&mut self, worker: usize) {
        if let Some(mean) = self.fleet.dies_after {
            let chance = f64::from(self.rng.rand(1)[0]);
            let after = time(-(1.0 - chance).ln() * mean);
            self.at(self.now + after, Event::Dies { worker });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Queued { run, unit, again } => {
                // A unit that comes again is the first to be given.
                if again {
                    self.queue.push_front((run, unit));
                } else {
                    self.queue.push_back((run, unit));
                }
                self.assign();
            }
            Event::Begins { worker, life } => self.begins(worker, life),
            Event::Computed { worker, life } => self.computed(worker, life),
            Event::Ends { worker, life } => self.ends(worker, life),
            Event::Arrives { run, unit } => self.arrives(run, unit),
            Event::Dies { worker } => self.dies(worker),
            Event::Returns { worker } => {
                self.idle.push(worker);
                self.mortal(worker);
                self.assign();
            }
        }
    }

    /// Gives out what is ready and near, as far as there are lanes.
    fn give(&mut self, run: usize) {
        while self.runs[run].given < self.fleet.in_flight {
            let (layout, state) = (self.shape.layout, &mut self.runs[run]);
            let near = |&&(needed, _, unit): &&(usize, usize, usize)| {
                needed < state.written + self.shape.ahead[layout.units[unit].stage]
            };
            let Some(next) = state.ready.iter().find(near).copied() else { return };
            state.ready.remove(&next);
            state.given += 1;
            let unit = next.2;
            if layout.is_away(unit) {
                self.messages += 2;
                self.at(self.now + self.latency(), Event::Queued { run, unit, again: false });
            } else {
                self.at(self.now + time(self.shape.seconds[unit]), Event::Arrives { run, unit });
            }
        }
    }

    /// Units to workers that have none.
    fn assign(&mut self) {
        while let Some(&(run, unit)) = self.queue.front() {
            let Some(worker) = self.idle.pop() else { return };
            self.queue.pop_front();
            let (mut ready, life) = (self.now, self.workers[worker].lives);
            for source in self.shape.sources[unit].clone() {
                if self.workers[worker].kept.contains(&(run, source)) {
                    continue;
                }
                let bytes = self.shape.bytes[source];
                self.traffic[0] += bytes as u64;
                let from = self.through(run, worker, 1, bytes);
                let to = self.workers[worker].link[0].pass(self.now, bytes, self.fleet.link);
                ready = ready.max(from).max(to) + self.latency();
                self.workers[worker].keep((run, source), bytes, self.fleet.cache, &self.shape.bytes);
            }
            let stage = self.shape.layout.units[unit].stage;
            if self.workers[worker].loaded.insert(stage) {
                ready += time(self.shape.loads[stage]);
            }
            self.workers[worker].unit = Some((run, unit));
            self.messages += 1;
            self.at(ready, Event::Begins { worker, life });
        }
    }

    /// When bytes of a run have come to a worker through the servers of both (`way` 1), or from it (0).
    fn through(&mut self, run: usize, worker: usize, way: usize, bytes: usize) -> Time {
        let (now, rate, all) = (self.now, self.fleet.server, self.fleet.servers.max(1));
        let (of_run, of_worker) = (run % all, worker % all);
        let at_run = self.servers[of_run][way].pass(now, bytes, rate);
        if of_run == of_worker {
            return at_run;
        }
        let both = self.servers[of_worker].each_mut().map(|link| link.pass(now, bytes, rate));
        at_run.max(both[0]).max(both[1])
    }

    fn begins(&mut self, worker: usize, life: usize) {
        if let Some((_, unit)) = self.held(worker, life) {
            self.at(self.now + time(self.shape.seconds[unit]), Event::Computed { worker, life });
        }
    }

    /// The unit that a worker has, if it is still the one that was meant.
    fn held(&self, worker: usize, life: usize) -> Option<(usize, usize)> {
        self.workers[worker].unit.filter(|_| self.workers[worker].lives == life)
    }

    fn computed(&mut self, worker: usize, life: usize) {
        let Some((run, unit)) = self.held(worker, life) else { return };
        let (fleet, state, bytes) = (self.fleet, &mut self.workers[worker], self.shape.bytes[unit]);
        let from = state.link[1].pass(self.now, bytes, fleet.link);
        state.keep((run, unit), bytes, fleet.cache, &self.shape.bytes);
        let to = self.through(run, worker, 0, bytes);
        // One message for the artefact, one for the answer.
        self.at(from.max(to) + 2 * self.latency(), Event::Ends { worker, life });
    }

    fn ends(&mut self, worker: usize, life: usize) {
        let Some((run, unit)) = self.held(worker, life) else { return };
        self.workers[worker].unit = None;
        let bytes = self.shape.bytes[unit];
        self.busy += self.shape.seconds[unit];
        self.units += 1;
        self.messages += 3;
        self.traffic[1] += bytes as u64;
        self.traffic[2] += bytes as u64;
        // A coordinator is at the server that has its run.
        let from = self.servers[run % self.fleet.servers.max(1)][1].pass(self.now, bytes, self.fleet.server);
        let to = self.runs[run].link.pass(self.now, bytes, self.fleet.link);
        self.at(from.max(to) + self.latency(), Event::Arrives { run, unit });
        self.idle.push(worker);
        self.assign();
    }

    fn arrives(&mut self, run: usize, unit: usize) {
        let (layout, state) = (self.shape.layout, &mut self.runs[run]);
        state.given -= 1;
        state.left -= 1;
        if layout.units[unit].writes.is_none() {
            state.written += layout.shown(unit).len();
        }
        for &d in &self.shape.dependents[unit] {
            state.waits[d] -= 1;
            if state.waits[d] == 0 {
                state.ready.insert(key(layout, d));
            }
        }
        self.left -= usize::from(state.left == 0);
        self.give(run);
    }

    fn dies(&mut self, worker: usize) {
        let back = self.now + time(self.fleet.away);
        let state = &mut self.workers[worker];
        let unit = state.unit.take();
        *state = Worker { lives: state.lives + 1, ..Worker::default() };
        self.idle.retain(|idle| *idle != worker);
        if let Some((run, unit)) = unit {
            self.repeated += 1;
            self.at(self.now + time(self.fleet.lease), Event::Queued { run, unit, again: true });
        }
        self.at(back, Event::Returns { worker });
    }
}

#[cfg(test)]
mod tests {
    use super::super::estimate::Cost;
    use super::super::testing::{bundle, plan, whole};
    use super::*;

    /// Links that take no time, and workers that do not die.
    fn fleet(workers: usize, runs: usize) -> Fleet {
        Fleet {
            workers,
            runs,
            in_flight: 64,
            link: 1e15,
            servers: 1,
            server: 1e15,
            latency: 0.0,
            cache: 1 << 30,
            dies_after: None,
            away: 30.0,
            lease: 10.0,
            seed: 1,
        }
    }

    fn layout() -> Layout {
        Layout::new(&plan(&whole(4)), &bundle()).unwrap()
    }

    /// Every step takes a second, frames of the video nothing.
    fn costs(layout: &Layout) -> Costs {
        let seconds = |kind| if kind == Kind::Video { 0.0 } else { 1.0 };
        let cost = |kind: Kind| Cost { stage: kind.name().to_owned(), seconds: seconds(kind), first: 0.0, memory: 0 };
        Costs { stages: layout.stages.iter().map(|s| cost(s.kind)).collect(), memory: None, frame_bytes: 0.0 }
    }

    #[test]
    fn one_worker_does_all_the_work_and_many_are_as_fast_as_the_longest_chain() {
        let layout = layout();
        let costs = costs(&layout);
        let away = (0..layout.units.len()).filter(|u| layout.is_away(*u)).count();
        let one = simulate(&layout, &costs, &fleet(1, 1));
        assert!((one.seconds - one.work).abs() < 1e-6 && one.utilisation > 0.999, "{one:?}");
        assert_eq!((one.units, one.repeated), (away, 0));
        assert_eq!((one.traffic[0], one.traffic[1] == one.traffic[2]), (0, true), "it has kept what it made");
        let many = simulate(&layout, &costs, &fleet(1000, 1));
        assert!((many.seconds - one.chain).abs() < 1e-6, "{many:?}");
        let two = simulate(&layout, &costs, &fleet(2, 1));
        assert!(two.seconds >= one.work / 2.0 && two.seconds < 0.6 * one.work, "{two:?}");
    }

    #[test]
    fn a_worker_that_dies_costs_its_unit_and_the_lease() {
        let layout = layout();
        let costs = costs(&layout);
        let whole = simulate(&layout, &costs, &fleet(4, 8));
        let dying = Fleet { dies_after: Some(whole.seconds / 4.0), ..fleet(4, 8) };
        let some = simulate(&layout, &costs, &dying);
        assert_eq!(some.units, whole.units);
        assert!(some.repeated > 0 && some.seconds > whole.seconds, "{some:?}");
        assert_eq!(simulate(&layout, &costs, &dying), some, "the same seed, the same deaths");
    }

    #[test]
    fn a_narrow_link_is_what_holds_workers_back() {
        let layout = layout();
        let costs = costs(&layout);
        let wide = simulate(&layout, &costs, &fleet(64, 64));
        // It would take as long as all work on eight workers.
        let bytes = (wide.traffic[0] + wide.traffic[2]) as f64;
        let narrow = simulate(&layout, &costs, &Fleet { server: bytes / (wide.work / 8.0), ..fleet(64, 64) });
        assert!(narrow.server[1] > 0.8 && narrow.utilisation < 0.3 && wide.utilisation > 0.9, "{wide:?} {narrow:?}");
        let more = simulate(&layout, &costs, &Fleet { server: bytes / (wide.work / 8.0), servers: 4, ..fleet(64, 64) });
        assert!(more.utilisation > 1.3 * narrow.utilisation, "{more:?} {narrow:?}");
    }
}
