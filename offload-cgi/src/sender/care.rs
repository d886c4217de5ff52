//! Looking after everybody: time-outs, the end, and what is shown to who may look.

use std::time::{Duration, SystemTime};

use super::carry::Carried;
use super::connection::{Connection, State};
use super::inbox::Transfer;
use super::{Fate, Sender};
use crate::log;

/// How long a connection that has ended may go on sending what nobody reads.
const LINGER: Duration = Duration::from_secs(5);

const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 27\r\n\
    Connection: close\r\n\r\n\
    The request took too long.\n";

impl Sender {
    /// No new connections; those that do nothing end, the others after their reply.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        let _ = self.listen(Vec::new());
        for number in self.table.numbers() {
            let idle = self.table.get(number).is_some_and(|connection| {
                // Who has just come in has a request on its way.
                matches!(connection.state, State::Reading)
                    && connection.served > 0
                    && connection.buffer.is_empty()
            });
            if idle && let Some(mut connection) = self.table.take(number) {
                match self.end(&mut connection) {
                    Fate::Keep => self.table.put(number, connection),
                    _ => self.close(connection, number),
                }
            }
        }
    }

    /// Ends everything that is running; the log is told how far it has got.
    pub(super) fn cut_off(&mut self) {
        for number in self.table.numbers() {
            self.step(number, |sender, connection| sender.finish(connection, number, false));
        }
        self.carried.iter().for_each(Carried::abort);
    }

    /// Time-outs.
    pub(super) fn look_after(&mut self) {
        if self.accept_again.is_some_and(|moment| self.now >= moment) {
            self.accept_again = None;
            let listeners = std::mem::take(&mut self.listeners);
            if let Err(error) = self.listen(listeners) {
                log::line(&format!("a listener cannot be used: {error}"));
            }
        }
        let wall = SystemTime::now();
        self.plan.sites.iter().for_each(|site| site.tidy(wall));
        self.carried.retain_mut(|carried| !carried.is_over());
        for carried in &mut self.carried {
            if carried.look_after(self.plan.min_rate, self.now) {
                self.common.counters.timeouts.add(1);
            }
        }
        for number in self.table.numbers() {
            let Some(connection) = self.table.get_mut(number) else { continue };
            let quiet = self.now.saturating_duration_since(connection.since);
            let late = match &mut connection.state {
                State::Reading if connection.buffer.is_empty() && connection.served > 0 => {
                    quiet >= self.plan.idle_timeout
                }
                State::Reading => quiet >= self.plan.header_timeout,
                State::Lingering => quiet >= LINGER,
                State::Asked | State::Awaiting(_) | State::Waiting(_) => false,
                State::Sending(sending) => {
                    sending.pulse.measure(sending.sent, self.now);
                    let patience = sending
                        .site
                        .map_or(self.plan.header_timeout, |site| site.options().timeout.duration());
                    let rate = self.plan.min_rate;
                    sending.is_stuck(&connection.socket, rate, patience, self.now)
                }
            };
            if late && let Some(connection) = self.table.take(number) {
                self.too_late(connection, number);
            }
        }
    }

    pub(super) fn too_late(&mut self, mut connection: Box<Connection>, number: u64) {
        match connection.state {
            State::Sending(_) => {
                self.common.counters.timeouts.add(1);
                self.finish(&mut connection, number, false);
            }
            State::Reading if connection.served == 0 || !connection.buffer.is_empty() => {
                self.common.counters.timeouts.add(1);
                // One that is told (RFC 9110, section 15.5.9) has at least begun.
                if !connection.buffer.is_empty() {
                    let _ = connection.socket.send(TIMED_OUT, false);
                    let fate = self.end(&mut connection);
                    if matches!(fate, Fate::Keep) {
                        self.table.put(number, connection);
                        return;
                    }
                }
            }
            _ => {}
        }
        self.close(connection, number);
    }

    pub(super) fn report(&self) -> Vec<Transfer> {
        let running = self.table.numbers().into_iter().filter_map(|number| {
            let State::Sending(sending) = &self.table.get(number)?.state else { return None };
            Some(Transfer {
                visit: (*sending.visit).clone(),
                sent: sending.sent,
                rate: sending.pulse.rate,
            })
        });
        let carried = self.carried.iter().filter(|carried| !carried.is_over());
        running.chain(carried.map(Carried::report)).collect()
    }
}
