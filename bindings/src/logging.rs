//! Logs of the core for the application.

use crate::error::MynahError;
use std::{
    cell::Cell,
    fmt::{self, Write},
    sync::{
        Arc, Once, PoisonError, RwLock,
        atomic::{AtomicU8, Ordering},
    },
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    subscriber::Interest,
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry::{LookupSpan, Registry},
};

/// How important a log record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LogLevel {
    /// An operation failed.
    Error,
    /// Something is wrong, and the library works around it.
    Warning,
    /// Loading, downloading and generating begin and end.
    Info,
    /// Details for a developer who looks for a problem.
    Debug,
    /// Everything.
    Trace,
}

/// One log record.
#[derive(Clone, Debug, uniffi::Record)]
pub struct LogRecord {
    /// Its level.
    pub level: LogLevel,
    /// The module that logs, such as `mynah::hub::fetch`.
    pub target: String,
    /// The message, followed by its fields as `name=value`.
    pub message: String,
    /// The names of the spans around it, outermost first, such as `load` and `download`.
    pub spans: Vec<String>,
}

/// A receiver of log records.
#[uniffi::export(foreign)]
pub trait LogHandler: Send + Sync {
    /// Receives a record, on any thread, also on the engine thread: it must return soon.
    ///
    /// # Errors
    /// The library ignores errors.
    fn log(&self, record: LogRecord) -> Result<(), MynahError>;
}

static HANDLER: RwLock<Option<Arc<dyn LogHandler>>> = RwLock::new(None);
/// The index of the least important level that the handler receives, from 1; 0 without a handler.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// Sends log records of `level` and of more important levels to `handler`; without a handler, to
/// none. A later call replaces the handler and the level.
///
/// In a process whose Rust code has installed a global `tracing` subscriber of its own, that
/// subscriber receives the records instead, and the result is `false`.
#[uniffi::export]
pub fn set_log_handler(handler: Option<Arc<dyn LogHandler>>, level: LogLevel) -> bool {
    static INSTALL: Once = Once::new();
    static IS_INSTALLED: AtomicU8 = AtomicU8::new(0);
    let index = if handler.is_some() { level as u8 + 1 } else { 0 };
    *HANDLER.write().unwrap_or_else(PoisonError::into_inner) = handler;
    LEVEL.store(index, Ordering::Release);
    INSTALL.call_once(|| {
        let subscriber = Registry::default().with(Forward);
        let outcome = tracing::subscriber::set_global_default(subscriber);
        IS_INSTALLED.store(outcome.is_ok().into(), Ordering::Release);
    });
    // `tracing` caches which levels anyone listens to.
    tracing::callsite::rebuild_interest_cache();
    IS_INSTALLED.load(Ordering::Acquire) == 1
}

/// Forwards records to the handler.
struct Forward;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Forward {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The level may change, which rebuilds this answer.
        if is_wanted(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Acquire) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        thread_local!(static IS_LOGGING: Cell<bool> = const { Cell::new(false) });
        // A handler that calls the library would otherwise log without end.
        if IS_LOGGING.replace(true) {
            return;
        }
        // The lock is free while the handler runs, so the handler may set another handler.
        let handler = HANDLER.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(handler) = handler {
            let spans = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
            let mut message = Message::default();
            event.record(&mut message);
            let _ = handler.log(LogRecord {
                level: level(event.metadata()),
                target: event.metadata().target().into(),
                message: message.text + &message.fields,
                spans: spans.map(|span| span.name().into()).collect(),
            });
        }
        IS_LOGGING.set(false);
    }
}

fn level(metadata: &Metadata<'_>) -> LogLevel {
    match *metadata.level() {
        tracing::Level::ERROR => LogLevel::Error,
        tracing::Level::WARN => LogLevel::Warning,
        tracing::Level::INFO => LogLevel::Info,
        tracing::Level::DEBUG => LogLevel::Debug,
        tracing::Level::TRACE => LogLevel::Trace,
    }
}

fn is_wanted(metadata: &Metadata<'_>) -> bool {
    (level(metadata) as u8) < LEVEL.load(Ordering::Acquire)
}

/// The message of an event, and its other fields.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Collected(Mutex<Vec<LogRecord>>);

    impl LogHandler for Collected {
        fn log(&self, record: LogRecord) -> Result<(), MynahError> {
            tracing::error!("a handler that logs does not call itself");
            self.0.lock().unwrap().push(record);
            Err(MynahError::invalid("the library ignores this"))
        }
    }

    #[test]
    fn a_handler_receives_records_of_its_level_with_their_spans() {
        let first = Arc::new(Collected::default());
        assert!(set_log_handler(Some(first.clone()), LogLevel::Info));
        let log = || {
            let _outer = tracing::info_span!("load").entered();
            let _inner = tracing::info_span!("download").entered();
            tracing::info!(file = "a.json", bytes = 7, "fetched {}", 1);
            tracing::debug!("detail");
        };
        log();
        let records: Vec<_> = first.0.lock().unwrap().drain(..).collect();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].level, LogLevel::Info);
        assert_eq!(records[0].target, "mynah_bindings::logging::tests");
        assert_eq!(records[0].message, "fetched 1 file=a.json bytes=7");
        assert_eq!(records[0].spans, ["load", "download"]);

        let second = Arc::new(Collected::default());
        assert!(set_log_handler(Some(second.clone()), LogLevel::Debug));
        log();
        assert!(first.0.lock().unwrap().is_empty());
        assert_eq!(second.0.lock().unwrap().len(), 2);

        set_log_handler(Some(second.clone()), LogLevel::Error);
        log();
        set_log_handler(None, LogLevel::Trace);
        tracing::error!("nobody listens");
        assert_eq!(second.0.lock().unwrap().len(), 2);
    }
}
