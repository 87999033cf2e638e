//! What the program says of itself: a log on standard error, as `PAGETIDE_LOG` asks for it, and with `--trace` a file of when each
//! step began and ended.

use anyhow::Context;
use std::fs::OpenOptions;
use std::path::Path;
use tracing::level_filters::LevelFilter;
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// Begins both. The trace is whole once the guard is dropped.
pub fn begin(trace: Option<&Path>) -> anyhow::Result<Option<FlushGuard>> {
    let log = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter(EnvFilter::from_env("PAGETIDE_LOG"));
    let (steps, guard) = trace.map(steps).transpose()?.unzip();
    tracing_subscriber::registry().with(log).with(steps).init();
    Ok(guard)
}

/// The layer that writes spans to a file, each with its begin and its end.
fn steps<S>(path: &Path) -> anyhow::Result<(impl Layer<S>, FlushGuard)>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
{
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).open(path);
    let file = file.with_context(|| format!("cannot write the trace to {}", path.display()))?;
    let (layer, guard) = ChromeLayerBuilder::new()
        .writer(file)
        .include_args(true)
        .include_locations(false)
        .build();
    Ok((layer.with_filter(LevelFilter::DEBUG), guard))
}
