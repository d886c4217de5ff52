//! The way of a response's bytes: burst, pace, spool, sleep.

use std::os::fd::AsFd as _;
use std::thread;

use offload_core::rate::BURST_END;
use offload_core::transfers::Manner;

use super::{ASYNC, Response, Stage, complain, is_async};
use crate::ffi::filter::{BROKEN, Brigade, Output, Status};
use crate::ffi::log::Level;
use crate::ffi::request::Request;
use crate::pacer::PACER;
use crate::spool::Spool;

/// A generator's output is put into a file when it is longer than this.
const WORTH_A_FILE: u64 = 32 << 10;

/// The response, piece by piece.
///
/// # Errors
/// What the filters below say: mostly that the client is gone.
pub(crate) fn write(
    response: &Response,
    output: Output<'_>,
    brigade: Brigade<'_>,
) -> Result<(), Status> {
    let Some(request) = output.request() else { return output.pass(brigade) };
    let census = brigade.census();
    if response.stage.get() == Stage::New && (census.bytes() > 0 || census.unknown) {
        response.begin(request, brigade);
    }
    let result = response.write(request, output, brigade);
    if census.ends {
        response.is_over.set(true);
        // The handler returns now; what is left is written without a worker, if the MPM can.
        if is_async(request) && !request.is_stream() {
            response.lease.take();
        }
    }
    result
}

impl Response {
    /// Has files sent in a way that holds no worker: by sendfile where it can be.
    fn send_files_directly(&self, request: Request<'_>, brigade: Brigade<'_>) {
        let may_sendfile = !request.is_encrypted() && !request.is_stream();
        brigade.send_files_directly(request, may_sendfile);
    }

    fn write(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        match self.stage.get() {
            Stage::New | Stage::Free => output.pass(brigade),
            Stage::Burst(left) => {
                let next = Stage::BurstEnd(BURST_END);
                self.write_burst(request, output, brigade, (left, Stage::Burst, next))
            }
            Stage::BurstEnd(left) => {
                let next = Stage::Throttled;
                self.write_burst(request, output, brigade, (left, Stage::BurstEnd, next))
            }
            Stage::Throttled => self.write_throttled(request, output, brigade),
        }
    }

    /// Writes what is left of this stage, and what belongs to the `next` one.
    fn write_burst(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
        (left, stage, next): (u64, fn(u64) -> Stage, Stage),
    ) -> Result<(), Status> {
        let census = brigade.census();
        if !census.unknown && census.bytes() <= left {
            self.stage.set(stage(left - census.bytes()));
            self.send_files_directly(request, brigade);
            return self.pass(request, output, brigade);
        }
        self.send_files_directly(request, brigade);
        let rest = self.rest(request)?;
        brigade.split(left, rest)?;
        // What lies in the spool belongs to the burst.
        self.put_spooled(request, brigade);
        self.pass_all(request, output, brigade)?;
        // The switch goes by itself, so that nothing of what follows comes before it.
        self.go_on(next, request, brigade);
        self.pass_all(request, output, brigade)?;
        brigade.append(rest);
        self.write(request, output, brigade)
    }

    /// Passes a brigade on, and leaves it empty for more.
    fn pass_all(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        if brigade.is_empty() {
            return Ok(());
        }
        let passed = output.pass(brigade);
        brigade.clear();
        if passed.is_err() {
            // It may have lost what it points to when somebody looks again.
            self.rest(request)?.clear();
        }
        passed
    }

    /// Puts what was spooled and not passed on at the brigade's beginning.
    fn put_spooled(&self, request: Request<'_>, brigade: Brigade<'_>) {
        if let Some(file) = self.spool.borrow_mut().as_mut()
            && let Some((start, length)) = file.take_part()
        {
            brigade.put_file(file.as_fd(), start, length, request);
        }
    }

    fn write_throttled(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        match self.manner.get() {
            Manner::Unthrottled => output.pass(brigade),
            Manner::Slept => self.write_and_sleep(request, output, brigade),
            Manner::Paced | Manner::Pulled | Manner::Spooled => {
                self.send_files_directly(request, brigade);
                self.pass(request, output, brigade)
            }
        }
    }

    /// Passes on what the kernel paces, through a file if that is wanted.
    fn pass(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        let census = brigade.census();
        if !is_async(request) || request.is_stream() {
            self.count_blocking(request, census.bytes());
            return output.pass(brigade);
        }
        if self.spool(request, brigade)? {
            return if brigade.is_empty() { Ok(()) } else { output.pass(brigade) };
        }
        // A flush behind a file has the worker wait for all of it.
        let is_encrypted = self.manner.get() != Manner::Pulled && request.is_encrypted();
        let is_memory = census.flushes || is_encrypted;
        let waits = census.memory + if is_memory { census.file } else { 0 };
        self.count_blocking(request, if census.unknown { ASYNC + 1 } else { waits });
        output.pass(brigade)
    }

    /// Puts what a generator has made into a file, and a part of the file into the brigade. Whether there is
    /// nothing else to pass on.
    fn spool(&self, request: Request<'_>, brigade: Brigade<'_>) -> Result<bool, Status> {
        let waits_for_memory = request.is_encrypted() && self.manner.get() != Manner::Pulled;
        if self.manner.get() == Manner::Slept || waits_for_memory {
            // It holds its worker anyway.
            return Ok(false);
        }
        let most = request.policy().map_or(0, |policy| policy.choke_spool().0.count());
        let census = brigade.census();
        let mut spool = self.spool.borrow_mut();
        let so_far = self.blocking.get().saturating_add(census.memory);
        let is_wanted = most > 0 && !self.has_no_spool.get();
        if spool.is_none() && is_wanted && (so_far > WORTH_A_FILE || census.unknown) {
            match Spool::create() {
                Ok(made) => {
                    PACER.change_manner(self.socket, Manner::Spooled);
                    if self.manner.get() == Manner::Paced {
                        self.manner.set(Manner::Spooled);
                    }
                    *spool = Some(made);
                }
                Err(why) => {
                    self.has_no_spool.set(true);
                    complain(
                        request,
                        "ChokeSpool",
                        &format!("ChokeSpool: no file can be made: {why}"),
                    );
                    return Ok(false);
                }
            }
        }
        let Some(file) = spool.as_mut() else { return Ok(false) };
        if census.flushes && file.is_passed_on() && !request.has_output_waiting() {
            // The client has all that was made so far: what follows is written at once.
            return Ok(true);
        }
        let mut is_over = file.is_full(most) || census.file > 0;
        if !is_over {
            // Also a flush without data would have the worker wait.
            let poured = brigade.pour(|bytes| {
                file.write(bytes).map_err(|why| {
                    is_over = true;
                    request.log(Level::Error, &format!("mod_offload: ChokeSpool: {why}"));
                    BROKEN
                })
            });
            if !is_over {
                poured?;
            }
        }
        let is_due = is_over || census.ends || census.closes || census.flushes;
        if (is_due || file.is_worth_a_part())
            && let Some((start, length)) = file.take_part()
        {
            brigade.put_file(file.as_fd(), start, length, request);
            if census.flushes && !is_over {
                brigade.put_nudge();
            }
        }
        if is_over {
            // There is no more room: what is in the file goes first, and then the rest, by a worker.
            file.end();
        }
        Ok(!is_over)
    }

    /// Writes a little, and sleeps until it is time for more.
    fn write_and_sleep(
        &self,
        request: Request<'_>,
        output: Output<'_>,
        brigade: Brigade<'_>,
    ) -> Result<(), Status> {
        let rest = self.rest(request)?;
        loop {
            let Some(slice) = PACER.slice(self.socket) else { return output.pass(brigade) };
            brigade.split(slice, rest)?;
            let bytes = brigade.census().bytes();
            if bytes > 0 {
                thread::sleep(PACER.reserve(self.socket, bytes));
                brigade.put_flush();
            }
            self.pass_all(request, output, brigade)?;
            if rest.is_empty() {
                return Ok(());
            }
            brigade.append(rest);
        }
    }
}
