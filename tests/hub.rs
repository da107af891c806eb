//! What comes from a hub is what the hub has, whatever the network, the disk and the hub do; and
//! nothing is fetched twice.

use mynah::{
    DEMO, Error, Files, Inspection, LoadEvent, LoadOptions, Model, Result, Source, download,
    hub::{self, AccessToken, Progress},
};
use mynah_tests::{
    block_on,
    hub::{
        content::{Content, File, Repository},
        server::{Fault, Request, Server},
    },
    mynah,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    future::{Future, poll_fn},
    ops::Range,
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const NAME: &str = "org/model";
/// What may be fetched twice on each connection after a cut.
const CHUNK: u64 = 8 << 20;
const MB: u64 = 1_000_000;

/// A hub with one repository, and an empty cache.
struct Hub {
    server: Server,
    cache: TempDir,
    repository: Repository,
    commit: String,
}

impl Hub {
    fn new(repository: Repository) -> Self {
        let server = Server::start().unwrap();
        let commit = server.publish(NAME, &repository);
        Hub { server, cache: tempfile::tempdir().unwrap(), repository, commit }
    }

    fn source(&self) -> Source {
        self.source_of(NAME)
    }

    fn source_of(&self, name: &str) -> Source {
        let source = Source::new(name).unwrap().without_token().with_cache(self.cache.path());
        source.with_endpoint(&self.server.endpoint()).unwrap()
    }

    fn fetch(&self) -> Result<PathBuf> {
        block_on(download(&self.source(), |_| ())).map_err(Error::into_cause)
    }

    /// Fetches until `enough`, and drops the future then.
    fn fetch_until(&self, enough: impl Fn(&Progress) -> bool + Send + 'static) {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let mut stop = Some(stop);
        let source = self.source();
        let mut fetch = pin!(download(&source, move |progress| {
            if enough(&progress) {
                stop.take().map(|stop| stop.send(()));
            }
        }));
        let mut stopped = pin!(stopped);
        block_on(poll_fn(|context| {
            assert!(fetch.as_mut().poll(context).is_pending(), "it ended before it was dropped");
            stopped.as_mut().poll(context).map(drop)
        }));
    }

    /// The command, in the environment of this hub.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.surround(mynah());
        command.args(arguments);
        command
    }

    fn surround(&self, mut command: Command) -> Command {
        let variables = env::vars_os().map(|(name, _)| name);
        for name in variables.filter(|name| name.to_string_lossy().starts_with("HF_")) {
            command.env_remove(name);
        }
        command.env("HF_HUB_OFFLINE", "0").env("HF_HOME", self.cache.path().join("home"));
        command.env("HF_ENDPOINT", self.server.endpoint()).env("HF_HUB_CACHE", self.cache.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(&self.commit)
    }

    /// The requests for large files.
    fn storage(&self) -> Vec<Request> {
        self.server.requests().into_iter().filter(Request::is_storage).collect()
    }

    /// Fails unless the snapshot holds the files of a model, as they are on the hub.
    fn check(&self) {
        check(&self.snapshot(), &self.repository);
    }
}

/// Whether a model needs a file of this name, of those in the tests' repositories.
fn is_needed(name: &str) -> bool {
    !UNNEEDED.contains(&name)
}

fn check(snapshot: &Path, repository: &Repository) {
    let needed: Vec<_> = repository.files.keys().filter(|name| is_needed(name)).cloned().collect();
    assert_eq!(files(snapshot), needed);
    for name in needed {
        let content = &repository.files[&name].content;
        assert!(content.is_in(&snapshot.join(&name)).unwrap(), "{name} is not what it should be");
    }
}

/// The paths of all files below a folder, sorted.
fn files(folder: &Path) -> Vec<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(std::result::Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|path| format!("{name}/{path}")));
        } else {
            found.insert(name);
        }
    }
    found.into_iter().collect()
}

const UNNEEDED: &[&str] = &[
    ".gitattributes",
    "README.md",
    "consolidated.safetensors",
    "flax_model.msgpack",
    "model.gguf",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "original/params.json",
    "pytorch_model.bin",
];

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 128, "rms_norm_eps": 1e-5}"#;

/// A repository whose weights are shards of these sizes.
fn sharded(sizes: &[u64]) -> Repository {
    let name = |i| format!("model-{:05}-of-{:05}.safetensors", i + 1, sizes.len());
    let map = (0..sizes.len()).map(|i| (format!("tensor.{i}"), name(i).into()));
    let map = serde_json::Map::from_iter(map);
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    let mut repository = Repository::default()
        .with("config.json", CONFIG)
        .with("generation_config.json", "{}")
        .with("tokenizer.json", "{}".repeat(1000))
        .with("tokenizer_config.json", "{}")
        .with("chat_template.jinja", "{{ messages }}")
        .with("additional_chat_templates/tool_use.jinja", "{{ tools }}")
        .with("model.safetensors.index.json", index);
    for (i, size) in sizes.iter().enumerate() {
        repository = repository.with_large(&name(i), shard(i, *size, i as u64));
    }
    for name in UNNEEDED {
        repository = repository.with(name, *name);
    }
    repository
}

/// A file of weights with one tensor of so many bytes.
fn shard(i: usize, bytes: u64, seed: u64) -> Content {
    Content::safetensors(&[(&format!("tensor.{i}"), "U8", &[bytes])], seed)
}

/// How many bytes of a file ranges cover.
fn covered(ranges: impl IntoIterator<Item = Range<u64>>) -> u64 {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort_by_key(|range| range.start);
    let (mut covered, mut end) = (0, 0);
    for range in ranges {
        covered += range.end.saturating_sub(range.start.max(end));
        end = end.max(range.end);
    }
    covered
}

/// How many bytes of large files were sent more than once.
fn sent_twice(requests: &[Request]) -> u64 {
    let mut files = BTreeMap::<&str, Vec<Range<u64>>>::new();
    for request in requests.iter().filter(|request| request.is_storage()) {
        files.entry(&request.path).or_default().push(request.sent.clone());
    }
    let twice = |ranges: Vec<Range<u64>>| {
        let sent: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        sent - covered(ranges)
    };
    files.into_values().map(twice).sum()
}

fn connections(requests: &[Request]) -> u64 {
    let storage = requests.iter().filter(|request| request.is_storage());
    storage.map(|request| request.connection).collect::<BTreeSet<_>>().len() as u64
}

/// Waits for what happens on another thread.
fn wait(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < deadline, "{what} never happened");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_model_needs_is_fetched_once_with_true_progress() {
    let hub = Hub::new(sharded(&[40 * MB, 3 * MB, 20 * MB]));
    let events = Arc::new(Mutex::new(Vec::new()));
    let (started, seen) = (Instant::now(), events.clone());
    let folder = block_on(download(&hub.source(), move |event| seen.lock().unwrap().push(event)));
    let elapsed = started.elapsed();
    assert_eq!(folder.unwrap(), hub.snapshot());
    hub.check();

    let events = events.lock().unwrap();
    let files = hub.repository.files.iter().filter(|(name, _)| is_needed(name));
    let total: u64 = files.map(|(_, file)| file.size).sum();
    assert!(events.iter().all(|event| event.total == total));
    assert!(events.is_sorted_by_key(|event| event.done));
    assert_eq!(events.last().unwrap().done, total);
    assert_eq!(events.iter().filter(|event| event.done == total).count(), 1);
    assert!(events.iter().all(|event| is_needed(&event.file)));
    assert!(events.len() as f64 <= 20.0 * elapsed.as_secs_f64() + 2.0, "{}", events.len());

    let requests = hub.server.requests();
    assert_eq!(sent_twice(&requests), 0);
    for name in UNNEEDED {
        assert!(!requests.iter().any(|request| request.path.contains(name)), "{name}");
    }
    let large = |request: &&Request| request.is_storage() && request.method == "GET";
    assert!(requests.iter().filter(large).any(|request| request.headers.contains_key("range")));
}

#[test]
fn a_model_is_loaded_by_its_name_on_a_hub() {
    let hub = Hub::new(Repository::demo());
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let answer = |source: Source| {
        let seen = seen.clone();
        block_on(async move {
            let model =
                Model::load(source).progress(move |event| seen.lock().unwrap().push(event)).await?;
            let options = model.default_options().temperature(0.0);
            let mut stream = model.generate("What is 3 + 4?", &options)?;
            let mut text = String::new();
            while let Some(event) = stream.next().await {
                if let mynah::Event::Token(token) = event? {
                    text += &token.text;
                }
            }
            Ok::<_, Error>(text)
        })
    };
    let from_hub = answer(hub.source()).unwrap();
    let events = std::mem::take(&mut *events.lock().unwrap());
    let is_download = |event: &&LoadEvent| matches!(event, LoadEvent::Download(_));
    let downloads = events.iter().take_while(is_download).count();
    assert!(0 < downloads && downloads < events.len());
    assert!(!events[downloads..].iter().any(|event| is_download(&event)));

    hub.server.forget();
    assert_eq!(answer(hub.source().offline()).unwrap(), from_hub);
    assert_eq!(hub.server.requests().len(), 0);
}

#[test]
fn a_whole_snapshot_needs_no_request_when_pinned_or_offline() {
    let hub = Hub::new(sharded(&[MB]));
    assert!(matches!(
        block_on(download(&hub.source().offline(), |_| ())),
        Err(Error::Offline { repository, revision }) if repository == NAME && revision == "main"
    ));
    assert_eq!(hub.server.requests().len(), 0);
    hub.fetch().unwrap();

    hub.server.forget();
    let pinned = hub.source_of(&format!("{NAME}@{}", hub.commit));
    let sources = [pinned.clone(), pinned.offline(), hub.source().offline()];
    for source in sources {
        assert_eq!(block_on(download(&source, |_| ())).unwrap(), hub.snapshot());
    }
    assert_eq!(hub.server.requests().len(), 0);
    assert_eq!(hub.fetch().unwrap(), hub.snapshot());
    assert_eq!(hub.server.requests().len(), 1);

    // Without a network what is there has to do.
    let source = hub.source().with_endpoint("http://127.0.0.1:9").unwrap();
    assert_eq!(block_on(download(&source, |_| ())).unwrap(), hub.snapshot());
}

#[test]
fn a_new_commit_is_fetched_and_shares_what_has_not_changed() {
    let hub = Hub::new(sharded(&[10 * MB, 10 * MB]));
    hub.fetch().unwrap();
    hub.server.forget();
    let second = "model-00002-of-00002.safetensors";
    let changed = hub.repository.clone().with_large(second, shard(1, 10 * MB, 9));
    let commit = hub.server.publish(NAME, &changed);
    let folder = hub.fetch().unwrap();
    assert!(folder.ends_with(&commit));
    check(&folder, &changed);
    hub.check();
    let hash = &changed.files[second].id;
    assert!(hub.storage().iter().all(|request| request.path.contains(hash)));
    assert_eq!(sent_twice(&hub.server.requests()), 0);
}

#[test]
fn cut_connections_are_resumed_at_the_byte() {
    let hub = Hub::new(sharded(&[30 * MB, 5 * MB]));
    hub.server.fail("/storage/", 6, Fault::Drop(3 * MB));
    hub.server.fail("tokenizer.json", 1, Fault::Drop(100));
    hub.fetch().unwrap();
    hub.check();
    let requests = hub.server.requests();
    // A connection may lose what was in the buffers of the system, and no more.
    assert!(sent_twice(&requests) <= 6 * (1 << 16), "{}", sent_twice(&requests));
}

#[test]
fn a_cancelled_fetch_ends_its_connections_and_keeps_what_has_arrived() {
    let hub = Hub::new(sharded(&[60 * MB, 30 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Slow(10 * MB));
    hub.fetch_until(|progress| progress.share() > 0.3);
    wait("the end of all connections", || hub.server.open_connections() == 0);
    assert!(!hub.snapshot().join("model-00001-of-00002.safetensors").exists());
    let before = hub.server.requests();
    hub.server.heal();
    hub.fetch().unwrap();
    hub.check();
    let twice = sent_twice(&hub.server.requests());
    assert!(twice <= CHUNK * connections(&before), "{twice}");
}

#[test]
fn a_fetch_that_stalls_can_be_cancelled() {
    let hub = Hub::new(sharded(&[60 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Stall(2 * MB));
    hub.fetch_until(|progress| progress.done > MB);
    wait("the end of all connections", || hub.server.open_connections() == 0);
    hub.server.heal();
    hub.fetch().unwrap();
    hub.check();
}

#[test]
fn a_server_without_ranges_serves_whole_files() {
    let hub = Hub::new(sharded(&[30 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::NoRanges);
    hub.fetch().unwrap();
    hub.check();
}

#[test]
fn wrong_bytes_are_refused_by_their_hash_and_fetched_anew() {
    let shard = "model-00001-of-00001.safetensors";
    for (path, name) in [("/storage/", shard), ("/tokenizer.json", "tokenizer.json")] {
        let hub = Hub::new(sharded(&[20 * MB]));
        hub.server.fail(path, usize::MAX, Fault::Corrupt(1234));
        match hub.fetch() {
            Err(Error::HashMismatch { file, expected, found }) => {
                assert_eq!((file.as_str(), &expected), (name, &hub.repository.files[name].id));
                assert_ne!(expected, found);
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(!hub.snapshot().join(name).exists());
        let offline = block_on(download(&hub.source().offline(), |_| ()));
        assert!(matches!(offline, Err(Error::Offline { .. })), "{offline:?}");
        hub.server.heal();
        hub.fetch().unwrap();
        hub.check();
    }
}

#[test]
fn bytes_that_are_wrong_once_are_fetched_again_in_the_same_run() {
    for (path, times) in [("/storage/", 1), ("/storage/", 3), ("/tokenizer.json", 1)] {
        let hub = Hub::new(sharded(&[20 * MB]));
        hub.server.fail(path, times, Fault::Corrupt(1234));
        hub.fetch().unwrap();
        hub.check();
    }
}

#[test]
fn a_range_that_is_not_stated_is_the_one_that_was_asked_for() {
    let hub = Hub::new(sharded(&[40 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Unstated);
    hub.fetch().unwrap();
    hub.check();
    assert_eq!(sent_twice(&hub.server.requests()), 0);
    inspect(Hub::new(seventy_billion()).source(), 1).unwrap();
}

#[test]
fn a_list_without_sizes_and_hashes_ends_in_verified_files() {
    let bare = |repository| Repository { is_bare: true, ..repository };
    let hub = Hub::new(bare(sharded(&[20 * MB, MB])));
    let found = inspect(hub.source(), 1);
    let whole = inspect(Hub::new(sharded(&[20 * MB, MB])).source(), 1);
    assert_eq!(found.unwrap().bytes, whole.unwrap().bytes);
    hub.fetch().unwrap();
    hub.check();

    let hub = Hub::new(bare(sharded(&[MB])));
    hub.server.fail("/storage/", usize::MAX, Fault::Corrupt(1234));
    assert!(matches!(hub.fetch(), Err(Error::HashMismatch { .. })));

    // A file of which nothing says what it should be.
    let hub = Hub::new(bare(sharded(&[MB])));
    hub.server.fail("/tokenizer.json", usize::MAX, Fault::Answer(200, &[], "{}"));
    let error = hub.fetch().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("verified"), "{error}");
}

#[test]
fn all_connections_wait_as_long_as_a_host_asks() {
    let hub = Hub::new(sharded(&[40 * MB, 40 * MB]));
    let limited = Fault::Answer(429, &[("Retry-After", "2")], "too many requests");
    hub.server.fail("/storage/", 1, limited);
    hub.fetch().unwrap();
    hub.check();
    let requests = hub.storage();
    let refused = requests.iter().find(|request| request.status == 429).unwrap().at;
    // A request that is on its way when the answer comes is too late to be held back.
    let early = |request: &&Request| {
        let after = request.at.saturating_duration_since(refused);
        after > Duration::from_millis(500) && after < Duration::from_millis(1900)
    };
    assert_eq!(requests.iter().filter(early).count(), 0);
    assert!(requests.iter().any(|r| r.at.saturating_duration_since(refused).as_secs() >= 1));
}

#[test]
fn an_index_that_names_no_file_is_ignored() {
    let index = sharded(&[MB, MB]).files.remove("model.safetensors.index.json").unwrap();
    let mut repository = sharded(&[]).with_large("model.safetensors", shard(0, 2 * MB, 0));
    repository.files.insert("model.safetensors.index.json".into(), index);
    let hub = Hub::new(repository);
    assert!(inspect(hub.source(), 1).unwrap().bytes >= 2 * MB);
    hub.fetch().unwrap();
    hub.check();
    hub.server.forget();
    block_on(download(&hub.source().offline(), |_| ())).unwrap();
    assert!(hub.server.requests().is_empty());
}

#[test]
fn an_unknown_quantization_is_judged_by_the_headers() {
    let config = CONFIG.replacen('{', r#"{"quantization_config": {"quant_method": "new"}, "#, 1);
    let repository = |dtype| {
        let weights = Content::safetensors(&[("tensor.0", dtype, &[1000, 250])], 0);
        sharded(&[MB]).with("config.json", &*config).with_large(SHARD, weights)
    };
    let dense = Hub::new(repository("F32"));
    dense.fetch().unwrap();
    dense.check();
    let packed = Hub::new(repository("U8"));
    let error = packed.fetch().unwrap_err();
    assert!(matches!(&error, Error::Quantization { reason, .. } if reason.contains("`new`")));
    assert!(!packed.snapshot().join(SHARD).exists());
}

const SHARD: &str = "model-00001-of-00001.safetensors";

/// An error of the hub's own making.
fn is_servers_fault(error: &Error) -> bool {
    matches!(
        error,
        Error::Server { .. }
            | Error::Network { .. }
            | Error::HashMismatch { .. }
            | Error::Changed { .. }
    )
}

#[test]
fn lies_about_sizes_and_ranges_are_errors_that_heal() {
    let shard = "model-00001-of-00001.safetensors";
    let listed = |size| {
        let mut repository = sharded(&[20 * MB]);
        repository.files.get_mut(shard).unwrap().size = size;
        (repository, None)
    };
    let honest = |fault| (sharded(&[20 * MB]), Some(fault));
    let lies: [(&str, (Repository, Option<Fault>)); 6] = [
        ("too small", listed(19 * MB)),
        ("too large", listed(21 * MB)),
        ("empty", listed(0)),
        ("shifted", honest(Fault::Shifted(100))),
        ("endless", honest(Fault::Endless)),
        ("a page", honest(Fault::Answer(200, &[("Content-Type", "text/html")], "<html>"))),
    ];
    for (name, (repository, fault)) in lies {
        let hub = Hub::new(repository);
        if let Some(fault) = fault {
            hub.server.fail("/storage/", usize::MAX, fault);
        }
        let error = hub.fetch().unwrap_err();
        assert!(is_servers_fault(&error), "{name}: {error:?}");
        assert!(!hub.snapshot().join(shard).exists(), "{name}");
        let held: u64 = files(&hub.folder().join("blobs"))
            .iter()
            .map(|name| fs::symlink_metadata(hub.folder().join("blobs").join(name)).unwrap().len())
            .sum();
        assert!(held < 50 * MB, "{name}: {held} bytes are kept");

        hub.server.heal();
        let truth = sharded(&[20 * MB]);
        let commit = hub.server.publish(NAME, &truth);
        check(&hub.fetch().unwrap_or_else(|error| panic!("{name}: {error}")), &truth);
        assert!(hub.folder().join("snapshots").join(commit).exists());
    }
}

#[test]
fn answers_that_are_no_listing_are_errors() {
    let answers: [Fault; 6] = [
        Fault::Answer(200, &[("Content-Type", "text/html")], "<html>Log in to this network</html>"),
        Fault::Answer(200, &[], "{}"),
        Fault::Answer(200, &[], r#"{"sha": "../../x", "siblings": []}"#),
        Fault::Answer(200, &[], r#"{"sha": 3, "siblings": [7]}"#),
        Fault::Answer(200, &[], ""),
        Fault::Endless,
    ];
    for (i, answer) in answers.into_iter().enumerate() {
        let hub = Hub::new(sharded(&[MB]));
        hub.server.fail("/api/models/", usize::MAX, answer);
        let error = hub.fetch().unwrap_err();
        assert!(matches!(error, Error::Server { .. }), "answer {i}: {error:?}");
        assert!(hub.storage().is_empty());
    }
}

#[test]
fn names_that_lead_out_of_the_cache_write_nothing_there() {
    for name in [
        "../model.safetensors",
        "../../../../model.safetensors",
        "/tmp/mynah-hostile/model.safetensors",
        "a/../../model.safetensors",
        "model\0.safetensors",
        "..\\model.safetensors",
        "./model.safetensors",
        "a//model.safetensors",
        "../config.json",
    ] {
        let content = Content::bytes("hostile");
        let repository = sharded(&[MB]).with_large(name, content);
        let hub = Hub::new(repository);
        let outer = tempfile::tempdir().unwrap();
        let cache = outer.path().join("home/hub");
        let fetched = block_on(download(&hub.source().with_cache(&cache), |_| ()));
        if let Err(error) = fetched {
            assert!(matches!(error, Error::InvalidName { .. }), "{name:?}: {error:?}");
        }
        assert!(!Path::new("/tmp/mynah-hostile").exists());
        for path in files(outer.path()) {
            assert!(path.starts_with("home/hub/"), "{name:?} wrote {path}");
            assert!(!path.contains("hostile"));
        }
        let hostile = files(&cache);
        let hostile = hostile.iter().filter(|path| !path.contains(".locks"));
        for path in hostile.filter_map(|path| fs::read(cache.join(path)).ok()) {
            assert_ne!(path, b"hostile", "{name:?}");
        }
    }
    for name in ["..", "../x", "/etc", "a/b/c", "a/..", "a\0b/c", "a\\b"] {
        let error = Source::new(name).unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{name:?}: {error:?}");
        let error = Source::new(&format!("org/model@{name}/..")).unwrap_err();
        assert!(matches!(error, Error::InvalidName { .. }), "{name:?}: {error:?}");
    }
}

#[test]
fn a_model_that_will_not_load_is_refused_before_its_weights() {
    let unknown = sharded(&[MB]).with("config.json", r#"{"model_type": "lama"}"#);
    let code = r#"{"model_type": "llama", "model_file": "evil.py"}"#;
    let code = sharded(&[MB]).with("config.json", code);
    let broken = sharded(&[MB]).with("config.json", r#"{"model_type": "#);
    let mut missing = sharded(&[MB]);
    missing.files.remove("config.json");
    let mut incomplete = sharded(&[MB, MB]);
    incomplete.files.remove("model-00002-of-00002.safetensors");
    let outside = r#"{"weight_map": {"a": "../../model.safetensors"}}"#;
    let outside = sharded(&[MB]).with("model.safetensors.index.json", outside);
    let mut without = sharded(&[]);
    without.files.remove("model.safetensors.index.json");
    without.files.remove("consolidated.safetensors");
    type Expected = fn(&Error) -> bool;
    let cases: [(Repository, Expected); 7] = [
        (
            unknown,
            |error| matches!(error, Error::UnknownModelType { model_type, .. } if model_type == "lama"),
        ),
        (code, |error| matches!(error, Error::CustomCode(_))),
        (broken, |error| matches!(error, Error::Config { file, .. } if file == "config.json")),
        (missing, |error| matches!(error, Error::Config { file, .. } if file == "config.json")),
        (incomplete, |error| matches!(error, Error::Checkpoint { .. })),
        (outside, |error| matches!(error, Error::Checkpoint { .. })),
        (without, |error| matches!(error, Error::Checkpoint { .. })),
    ];
    for (i, (repository, expected)) in cases.into_iter().enumerate() {
        let hub = Hub::new(repository);
        let error = hub.fetch().unwrap_err();
        assert!(expected(&error), "case {i}: {error:?}");
        assert_eq!(hub.storage().len(), 0, "case {i}");
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let hub = Hub::new(sharded(&[MB]));
    let token = || AccessToken::new("hf_secret").unwrap();
    let fetch = |source: Source| block_on(download(&source, |_| ())).unwrap_err();
    for source in [hub.source_of("org/other"), hub.source_of("org/other").with_token(token())] {
        let error = fetch(source);
        let Error::RepositoryNotFound { repository, host } = &error else { panic!("{error:?}") };
        assert_eq!((repository.as_str(), host.starts_with("127.0.0.1")), ("org/other", true));
    }
    let error = fetch(hub.source_of("org/model@v9"));
    assert!(
        matches!(&error, Error::RevisionNotFound { revision, .. } if revision == "v9"),
        "{error:?}"
    );
}

#[test]
fn a_gated_model_says_where_its_licence_is_and_never_the_token() {
    let mut repository = sharded(&[MB]);
    (repository.gated, repository.token) = (true, Some("hf_right".into()));
    let hub = Hub::new(repository);
    let wrong = hub.source().with_token(AccessToken::new("hf_wrong").unwrap());
    for source in [hub.source(), wrong] {
        let error = block_on(download(&source, |_| ())).unwrap_err();
        let Error::Gated { repository, address } = &error else { panic!("{error:?}") };
        assert_eq!(repository, NAME);
        assert_eq!(*address, format!("{}/{NAME}", hub.server.endpoint()));
        let shown = format!("{error} {error:?} {source:?}");
        assert!(!shown.contains("hf_wrong"), "{shown}");
    }
    assert_eq!(hub.storage().len(), 0);

    hub.server.forget();
    let right = hub.source().with_token(AccessToken::new("hf_right").unwrap());
    block_on(download(&right, |_| ())).unwrap();
    hub.check();
    let (storage, others): (Vec<_>, Vec<_>) =
        hub.server.requests().into_iter().partition(Request::is_storage);
    assert!(!storage.is_empty() && storage.iter().all(|request| request.token().is_none()));
    assert!(storage.iter().all(|request| request.port == hub.server.storage_port()));
    assert!(others.iter().all(|request| request.token() == Some("hf_right")));
}

#[test]
fn a_private_model_looks_as_if_it_did_not_exist() {
    let mut repository = sharded(&[MB]);
    repository.token = Some("hf_right".into());
    let hub = Hub::new(repository);
    let error = hub.fetch().unwrap_err();
    assert!(
        matches!(error, Error::RepositoryNotFound { .. } | Error::Unauthorized { .. }),
        "{error:?}"
    );
}

#[test]
fn passing_trouble_is_waited_out() {
    let busy = Fault::Answer(503, &[], "busy");
    let limited = Fault::Answer(429, &[("Retry-After", "1")], "too many requests");
    let expired = Fault::Answer(403, &[], "<Error><Code>AccessDenied</Code></Error>");
    for (path, times, fault) in [
        ("/api/models/", 2, busy.clone()),
        ("/resolve/", 2, busy.clone()),
        ("/storage/", 2, busy),
        ("/api/models/", 1, limited.clone()),
        ("/resolve/", 1, limited.clone()),
        ("/storage/", 1, limited),
        // The address of a large file holds for some minutes only.
        ("/storage/", 1, expired),
        ("/api/models/", 1, Fault::Drop(20)),
        ("/resolve/", 1, Fault::Drop(0)),
    ] {
        let hub = Hub::new(sharded(&[MB]));
        hub.server.fail(path, times, fault);
        hub.fetch().unwrap();
        hub.check();
    }
}

#[test]
fn lasting_trouble_ends_with_an_error() {
    let limited = Fault::Answer(429, &[("Retry-After", "3600")], "too many requests");
    let hub = Hub::new(sharded(&[MB]));
    hub.server.fail("/api/models/", usize::MAX, limited);
    let error = hub.fetch().unwrap_err();
    let Error::RateLimited { host, after } = error else { panic!("{error:?}") };
    assert!(host.starts_with("127.0.0.1"));
    assert_eq!(after, Some(Duration::from_secs(3600)));
    assert_eq!(hub.server.requests().len(), 1);

    let hub = Hub::new(sharded(&[MB]));
    hub.server.fail("/api/models/", usize::MAX, Fault::Answer(500, &[], "broken"));
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, Error::Server { .. } | Error::Network { .. }), "{error:?}");
    assert!(error.to_string().contains("500"), "{error}");
    assert!(hub.server.requests().len() > 1);

    let nobody = hub.source().with_endpoint("http://127.0.0.1:9").unwrap();
    let error = block_on(download(&nobody, |_| ())).unwrap_err();
    assert!(
        matches!(&error, Error::Network { host, .. } if host.contains("127.0.0.1")),
        "{error:?}"
    );
}

#[test]
fn a_repository_that_changes_meanwhile_is_fetched_as_it_was() {
    let first = sharded(&[10 * MB, 10 * MB]);
    let changed = sharded(&[10 * MB, 10 * MB])
        .with("config.json", CONFIG.to_string() + " ")
        .with_large("model-00002-of-00002.safetensors", shard(1, 12 * MB, 77));
    for at in ["/config.json", "/storage/"] {
        let hub = Hub::new(first.clone());
        hub.server.fail(at, 1, Fault::Publish(NAME, changed.clone()));
        let folder = hub.fetch().unwrap();
        let is_first = folder.ends_with(&hub.commit);
        check(&folder, if is_first { &first } else { &changed });
        check(&hub.fetch().unwrap(), &changed);
    }
}

#[test]
fn damaged_snapshots_are_healed_with_what_is_missing() {
    let shard = "model-00002-of-00002.safetensors";
    type Harm = fn(&Path);
    let damages: [(&str, Harm); 4] = [
        ("a file without its link", |file| fs::remove_file(file).unwrap()),
        ("a link without its blob", |file| fs::remove_file(file.canonicalize().unwrap()).unwrap()),
        ("a blob that was cut", |file| {
            fs::OpenOptions::new().write(true).open(file).unwrap().set_len(1000).unwrap();
        }),
        ("a link to elsewhere", |file| {
            fs::remove_file(file).unwrap();
            std::os::unix::fs::symlink("/dev/null", file).unwrap();
        }),
    ];
    for (damage, harm) in damages {
        let hub = Hub::new(sharded(&[3 * MB, 3 * MB]));
        hub.fetch().unwrap();
        harm(&hub.snapshot().join(shard));
        let offline = block_on(download(&hub.source().offline(), |_| ()));
        assert!(matches!(offline, Err(Error::Offline { .. })), "{damage}: {offline:?}");
        hub.server.forget();
        hub.fetch().unwrap();
        hub.check();
        let hash = &hub.repository.files[shard].id;
        let others = hub.storage();
        assert!(others.iter().all(|request| request.path.contains(hash)), "{damage}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let hub = Hub::new(sharded(&[MB]));
    let file = hub.cache.path().join("file");
    fs::write(&file, "in the way").unwrap();
    // Not even root makes a folder where the kernel lists processes.
    let places =
        if cfg!(target_os = "linux") { &[&*file, Path::new("/proc")][..] } else { &[&*file] };
    for place in places {
        let error = block_on(download(&hub.source().with_cache(place.join("hub")), |_| ()));
        let error = error.unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(place)), "{error:?}");
    }
    assert_eq!(hub.storage().len(), 0);
}

#[test]
fn a_model_larger_than_the_disk_is_refused_at_once() {
    let shard = "model-00001-of-00001.safetensors";
    let mut repository = sharded(&[MB]);
    repository.files.get_mut(shard).unwrap().size = 1 << 52;
    let hub = Hub::new(repository);
    let error = hub.fetch().unwrap_err();
    let Error::DiskFull { needed, free, .. } = error else { panic!("{error:?}") };
    assert!(needed >= 1 << 52 && free < needed);
    assert_eq!(hub.storage().len(), 0);
}

/// The exit code and what was said.
fn finish(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_disk_that_becomes_full_leaves_nothing_half_written() {
    let hub = Hub::new(sharded(&[40 * MB, MB]));
    // Files of at most ten megabytes; the signal would end the process.
    let script = r#"trap '' XFSZ; ulimit -f 20000; exec "$0" "$@""#;
    let mut limited = hub.surround(Command::new("sh"));
    limited.args(["-c", script]).arg(mynah().get_program()).args(["download", NAME]);
    let (code, out, err) = finish(limited.spawn().unwrap());
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.starts_with("mynah: ") && err.contains("blobs"), "{err}");
    assert!(!hub.snapshot().join("model-00001-of-00002.safetensors").exists());
    hub.fetch().unwrap();
    hub.check();
}

#[test]
fn two_processes_fetch_a_file_once() {
    let hub = Hub::new(sharded(&[40 * MB, 20 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Slow(40 * MB));
    let start = || hub.command(&["download", NAME]).spawn().unwrap();
    let children = [start(), start(), start()];
    for child in children {
        let (code, out, err) = finish(child);
        assert_eq!((code, Path::new(out.trim())), (Some(0), &*hub.snapshot()), "{err}");
    }
    hub.check();
    assert_eq!(sent_twice(&hub.server.requests()), 0);
}

#[test]
fn requests_go_by_way_of_the_proxy_that_the_environment_names() {
    let hub = Hub::new(sharded(&[2 * MB]));
    let mut download = hub.command(&["download", NAME]);
    let port = hub.server.endpoint();
    download.env("HF_ENDPOINT", "http://hub.invalid").env("HTTP_PROXY", &port);
    download.env("http_proxy", &port).env_remove("NO_PROXY").env_remove("no_proxy");
    let (code, _, err) = finish(download.spawn().unwrap());
    assert_eq!(code, Some(0), "{err}");
    hub.check();
    let requests = hub.server.requests();
    assert!(requests.iter().all(|request| request.proxied), "{requests:?}");
}

#[test]
fn requests_go_by_way_of_a_socks_proxy() {
    for scheme in ["socks5", "socks5h"] {
        let hub = Hub::new(sharded(&[2 * MB]));
        let mut download = hub.command(&["download", NAME]);
        let proxy = hub.server.endpoint().replace("http", scheme);
        // Only the proxy knows this name, which the other scheme asks this machine for.
        let name = if scheme == "socks5h" { "http://hub.invalid" } else { "http://127.0.0.1:9" };
        download.env("HF_ENDPOINT", name).env("ALL_PROXY", proxy);
        download.env_remove("NO_PROXY").env_remove("no_proxy");
        let (code, _, err) = finish(download.spawn().unwrap());
        assert_eq!(code, Some(0), "{scheme}: {err}");
        hub.check();
        let requests = hub.server.requests();
        assert!(requests.iter().all(|request| request.proxied), "{requests:?}");
    }
}

/// A transport of the application that counts and may lie.
struct Transport {
    calls: AtomicUsize,
    repository: Repository,
    lies: bool,
}

impl hub::Downloader for Transport {
    fn download(&self, download: &hub::Download) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(download.url.starts_with("http://127.0.0.1:"));
        let mut bytes = self.repository.files[download.name].content.to_vec();
        assert_eq!(bytes.len() as u64, download.size);
        bytes[0] ^= u8::from(self.lies);
        fs::write(download.path, &bytes)
            .map_err(|source| Error::Io { path: download.path.into(), source })?;
        (download.on_progress)(download.size);
        Ok(())
    }
}

#[test]
fn an_application_can_bring_its_own_transport() {
    for lies in [false, true] {
        let hub = Hub::new(sharded(&[2 * MB]));
        let repository = hub.repository.clone();
        let transport = Arc::new(Transport { calls: AtomicUsize::new(0), repository, lies });
        let source = hub.source().with_downloader(transport.clone());
        let fetched = block_on(download(&source, |_| ()));
        assert!(transport.calls.load(Ordering::SeqCst) > 0);
        assert_eq!(hub.storage().len(), 0);
        if lies {
            assert!(matches!(fetched, Err(Error::HashMismatch { .. })), "{fetched:?}");
        } else {
            fetched.unwrap();
            hub.check();
        }
    }
}

/// A transport that counts as no file can.
struct Boaster(Transport);

impl hub::Downloader for Boaster {
    fn download(&self, download: &hub::Download) -> Result<()> {
        for bytes in [u64::MAX, 0, 1] {
            (download.on_progress)(bytes);
        }
        self.0.download(download)
    }
}

#[test]
fn a_transport_may_count_as_it_likes() {
    let hub = Hub::new(sharded(&[2 * MB, MB]));
    let calls = AtomicUsize::new(0);
    let transport = Transport { calls, repository: hub.repository.clone(), lies: false };
    let source = hub.source().with_downloader(Arc::new(Boaster(transport)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    block_on(download(&source, move |progress| note.lock().unwrap().push(progress))).unwrap();
    hub.check();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    assert!(seen.iter().all(|progress| progress.done <= progress.total));
}

#[test]
fn a_tokenizer_may_come_from_another_repository() {
    let mut lender = Repository::demo();
    lender.files.retain(|name, _| name.starts_with("tokenizer"));
    let hub = Hub::new(lender);
    let weights = tempfile::tempdir().unwrap();
    let Files::Embedded(files) = DEMO else { unreachable!("the demo model is embedded") };
    for (name, bytes) in files.iter().filter(|(name, _)| !name.starts_with("tokenizer")) {
        fs::write(weights.path().join(name), bytes).unwrap();
    }
    let load =
        |options| block_on(Model::load(weights.path()).options(options)).map_err(Error::into_cause);
    let text = "What is 3 + 4?";
    let encode = |model: &Model| model.tokenizer()?.encode(text, false);
    assert!(encode(&load(LoadOptions::default()).unwrap()).is_err());

    let lent = LoadOptions::default().tokenizer(hub.source());
    let offline = lent.clone().offline(true);
    assert!(matches!(load(offline.clone()), Err(Error::Offline { .. })));
    let demo = block_on(Model::load(DEMO)).unwrap();
    let messages = [mynah::Message::user(text)];
    for (options, requests) in [(lent.clone(), None), (lent, Some(1)), (offline, Some(0))] {
        hub.server.forget();
        let model = load(options).unwrap();
        assert_eq!(encode(&model).unwrap(), encode(&demo).unwrap());
        assert_eq!(model.end_tokens(), demo.end_tokens());
        let render = |model: &Model| model.render(&messages, &Default::default()).unwrap();
        assert_eq!(render(&model), render(&demo));
        let seen = hub.server.requests().len();
        assert_eq!(seen, requests.unwrap_or(seen));
    }

    let nothing = Hub::new(Repository::default().with("config.json", "{}"));
    let options = LoadOptions::default().tokenizer(nothing.source());
    assert!(matches!(load(options), Err(Error::Tokenizer { .. })));
}

#[test]
fn an_adapter_may_come_from_a_repository() {
    let Files::Embedded(files) = DEMO else { unreachable!("the demo model is embedded") };
    let config = files.iter().find(|(name, _)| *name == "config.json").unwrap().1;
    let config: serde_json::Value = serde_json::from_slice(config).unwrap();
    let size = |field: &str| config[field].as_u64().unwrap();
    let (inner, width) = (size("intermediate_size"), size("hidden_size"));
    let factors: [(&str, &str, &[u64]); 2] = [
        ("model.layers.0.mlp.down_proj.lora_a", "F32", &[inner, 2]),
        ("model.layers.0.mlp.down_proj.lora_b", "F32", &[2, width]),
    ];
    let mut tensors = Content::safetensors(&factors, 1).to_vec();
    let header = tensors.len() - (4 * 2 * (inner + width)) as usize;
    tensors[header..].fill(0);
    let adapter = |rank| {
        let config = format!(r#"{{"lora_parameters": {{"rank": {rank}, "scale": 2.0}}}}"#);
        Repository::default()
            .with("README.md", "what nobody needs")
            .with("adapter_config.json", config)
            .with_large("adapters.safetensors", Content::bytes(&*tensors))
    };
    let hub = Hub::new(adapter(2));
    let load = |options| block_on(Model::load(DEMO).options(options)).map_err(Error::into_cause);
    let online = LoadOptions::default().adapter(hub.source());
    let offline = online.clone().offline(true);
    assert!(matches!(load(offline.clone()), Err(Error::Offline { .. })));
    for (options, requests) in [(online.clone(), None), (online, Some(1)), (offline, Some(0))] {
        hub.server.forget();
        load(options).unwrap();
        let seen = hub.server.requests();
        assert!(!seen.iter().any(|request| request.path.contains("README")));
        assert_eq!(seen.len(), requests.unwrap_or(seen.len()));
    }
    let other = Hub::new(adapter(3));
    let options = LoadOptions::default().adapter(other.source());
    assert!(matches!(load(options), Err(Error::TensorShape { .. })));
    let nothing = Hub::new(Repository::default().with("config.json", "{}"));
    let options = LoadOptions::default().adapter(nothing.source());
    let missing = load(options).err();
    assert!(missing.unwrap().to_string().contains("adapter_config.json"));
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    const KILLS: usize = 100;
    // Two files at once, four connections each.
    const CONNECTIONS: u64 = 8;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (mut kills, mut downloads, mut most) = (0, 0, 0);
    let mut hub = Hub::new(sharded(&[90 * MB, 50 * MB, 30 * MB]));
    while kills < KILLS {
        hub.cache = tempfile::tempdir().unwrap();
        hub.server.forget();
        let mut lost = 0;
        loop {
            let seen = hub.server.requests().len();
            let mut child = hub.command(&["download", NAME]).spawn().unwrap();
            thread::sleep(Duration::from_millis(5 + random(250)));
            let is_killed = kills < KILLS && child.try_wait().unwrap().is_none();
            if is_killed {
                child.kill().unwrap();
                kills += 1;
            }
            let (code, _, err) = finish(child);
            wait("the end of all connections", || hub.server.open_connections() == 0);
            let requests = hub.server.requests();
            let twice = sent_twice(&requests);
            most = most.max(twice.saturating_sub(sent_twice(&requests[..seen])));
            assert!(twice <= lost, "{twice} bytes were fetched twice, {lost} may have been lost");
            lost += CHUNK * connections(&requests[seen..]).min(CONNECTIONS);
            if !is_killed {
                assert_eq!(code, Some(0), "{err}");
                hub.check();
                break;
            }
        }
        downloads += 1;
    }
    println!("{kills} kills, {downloads} downloads, at most {most} bytes twice after a kill");
}

fn inspect(source: Source, context: usize) -> Result<Inspection> {
    block_on(mynah::inspect(source, Some(context)))
}

#[test]
fn inspecting_a_repository_says_what_inspecting_its_files_says() {
    let hub = Hub::new(Repository::demo());
    let from_hub = inspect(hub.source(), 300).unwrap();
    let local = block_on(mynah::inspect(DEMO, Some(300))).unwrap();
    let mut expected = local.clone();
    expected.gated = Some(false);
    assert_eq!(from_hub, expected);
    assert_eq!(files(hub.cache.path()).len(), 0);

    // What is there is not fetched again.
    hub.fetch().unwrap();
    hub.server.forget();
    assert_eq!(inspect(hub.source(), 300).unwrap(), from_hub);
    assert_eq!(hub.server.requests().len(), 1);
    assert_eq!(inspect(hub.source().offline(), 300).unwrap(), local);
    assert_eq!(hub.server.requests().len(), 1);
}

/// Llama 3 70B, of which only the headers mean anything.
fn seventy_billion() -> Repository {
    const SHARDS: usize = 4;
    const LAYERS: usize = 80;
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": LAYERS, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "max_position_embeddings": 8192, "tie_word_embeddings": false,
    });
    let mut shards: Vec<Vec<(String, Vec<u64>)>> = vec![Vec::new(); SHARDS];
    for layer in 0..LAYERS {
        let matrices: [(&str, &[u64]); 9] = [
            ("input_layernorm", &[8192]),
            ("post_attention_layernorm", &[8192]),
            ("self_attn.q_proj", &[8192, 8192]),
            ("self_attn.k_proj", &[1024, 8192]),
            ("self_attn.v_proj", &[1024, 8192]),
            ("self_attn.o_proj", &[8192, 8192]),
            ("mlp.gate_proj", &[28672, 8192]),
            ("mlp.up_proj", &[28672, 8192]),
            ("mlp.down_proj", &[8192, 28672]),
        ];
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let tensors = matrices.map(|(part, shape)| (name(part), shape.to_vec()));
        shards[layer * SHARDS / LAYERS].extend(tensors);
    }
    shards[0].push(("model.embed_tokens.weight".into(), vec![128_256, 8192]));
    shards[SHARDS - 1].push(("model.norm.weight".into(), vec![8192]));
    shards[SHARDS - 1].push(("lm_head.weight".into(), vec![128_256, 8192]));

    let mut repository = Repository::default().with("config.json", config.to_string());
    let mut map = serde_json::Map::new();
    for (i, tensors) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", i + 1);
        map.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone().into())));
        let tensors: Vec<_> = tensors.iter().map(|(n, s)| (n.as_str(), "BF16", &s[..])).collect();
        let content = Content::safetensors(&tensors, 0);
        // Nobody fetches what this would be the hash of.
        let (size, id) = (content.size(), format!("{i:064}"));
        repository.files.insert(file, File { content, lfs: true, size, id });
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    repository.with("model.safetensors.index.json", index)
}

#[test]
fn a_model_of_any_size_is_inspected_by_its_headers() {
    let mut repository = seventy_billion();
    (repository.gated, repository.token) = (true, Some("hf_right".into()));
    let hub = Hub::new(repository.clone());
    let source = hub.source().with_token(AccessToken::new("hf_right").unwrap());
    let found = inspect(source, 8192).unwrap();
    assert_eq!((found.problem, found.family), (None, Some("llama")));
    assert_eq!((found.layers, found.hidden_size), (Some(80), Some(8192)));
    assert_eq!((found.parameters, found.bytes), (70_553_706_496, 2 * 70_553_706_496));
    assert_eq!((found.context, found.gated), (Some(8192), Some(true)));
    assert_eq!((found.tokenizer, found.chat_template), (false, false));
    assert_eq!(found.capabilities, ["text"]);
    let memory = found.memory.unwrap();
    assert_eq!(memory.weights, found.bytes);
    assert_eq!(memory.cache, 80 * 2 * 8 * 128 * 8192 * 2);
    assert_eq!(memory.fits, memory.device.map(|size| size >= memory.needed));
    assert!(memory.needed > memory.weights + memory.cache);

    let storage = hub.storage();
    let sent: u64 = storage.iter().map(|request| request.sent.end - request.sent.start).sum();
    assert!(sent <= 4 * 100_000, "{sent} bytes of weights were fetched");
    assert!(storage.iter().all(|request| request.headers.contains_key("range")));
    assert!(storage.iter().all(|request| request.token().is_none()));

    let tensors = [("model.embed_tokens.weight", "BF16", &[128_256, 8192][..])];
    let content = Content::safetensors(&tensors, 0);
    let (size, id) = (content.size(), "f".repeat(64));
    let shard = File { content, lfs: true, size, id };
    repository.files.insert("model-00001-of-00004.safetensors".into(), shard);
    (repository.gated, repository.token) = (false, None);
    hub.server.publish(NAME, &repository);
    let found = inspect(hub.source(), 8192).unwrap();
    let problem = found.problem.unwrap();
    assert!(problem.contains("`model.layers.0.") && problem.contains("not in the"), "{problem}");
    assert_eq!((found.memory, found.capabilities.len()), (None, 0));
}

#[test]
fn what_will_not_load_is_inspected_too() {
    let hub = Hub::new(sharded(&[MB]).with("config.json", r#"{"model_type": "lama"}"#));
    let found = inspect(hub.source(), 10).unwrap();
    assert!(found.problem.unwrap().contains("`lama` is not supported"));
    assert_eq!((found.family, found.bytes, found.memory), (None, MB, None));

    let mut lie = Content::bytes(u64::MAX.to_le_bytes().repeat(100)).to_vec();
    for length in [1 << 62, 99_000_000, 801, 5] {
        lie[..8].copy_from_slice(&u64::to_le_bytes(length));
        let repository = sharded(&[]).with("model.safetensors", lie.clone());
        let mut repository = repository.with("config.json", CONFIG);
        repository.files.remove("model.safetensors.index.json");
        hub.server.publish(NAME, &repository);
        let error = inspect(hub.source(), 10).unwrap_err().into_cause();
        assert!(matches!(error, Error::Checkpoint { .. }), "{length}: {error:?}");
    }
}

fn run(mut command: Command) -> (Option<i32>, String, String) {
    finish(command.spawn().unwrap())
}

#[test]
fn the_command_takes_repositories_wherever_it_takes_directories() {
    let hub = Hub::new(Repository::demo());
    let (code, out, err) = run(hub.command(&["inspect", NAME]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("gated          no\n") && out.contains("fits in"), "{out}");

    let (code, out, err) = run(hub.command(&["generate", NAME, "What is 3 + 4?"]));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out, run(hub.command(&["generate", "What is 3 + 4?"])).1);
    hub.check();

    let named = format!("{NAME}@{}", hub.commit);
    let mut offline = hub.command(&["score", &named, "--text", "Hello"]);
    offline.env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:9");
    let (code, _, err) = run(offline);
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn the_command_tells_lists_and_deletes() {
    let hub = Hub::new(sharded(&[20 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Slow(3 * MB));
    let (code, out, err) = run(hub.command(&["download", NAME]));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out, format!("{}\n", hub.snapshot().display()));
    assert!(err.lines().count() > 0 && !err.contains(['\r', '\x1b']), "{err:?}");
    let told = |line: &str| {
        line.starts_with("downloading … ")
            && line.contains(" % of 20.0 MB, ")
            && line.contains("/s")
    };
    assert!(err.lines().all(told), "{err}");
    hub.check();

    let (code, out, _) = run(hub.command(&["models"]));
    let [model, revision] = out.lines().collect::<Vec<_>>()[..] else { panic!("{out}") };
    assert_eq!(code, Some(0));
    assert!(model.starts_with(NAME) && model.ends_with(" 20.0 MB"), "{out}");
    let short = &hub.commit[..8];
    assert!(revision.trim_start().starts_with(&format!("{short} main ")), "{out}");
    assert!(revision.contains("  complete, used 0 min ago"), "{out}");
    let (_, out, _) = run(hub.command(&["models", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json[0]["repository"], NAME);
    assert_eq!(json[0]["revisions"][0]["commit"], hub.commit.as_str());
    assert_eq!(json[0]["revisions"][0]["complete"], true);

    let (code, out, err) = run(hub.command(&["rm", &format!("{NAME}@main")]));
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    assert!(err.starts_with("deleted org/model@main, which frees 20.0 MB"), "{err}");
    assert!(!hub.folder().exists());
    let (code, _, err) = run(hub.command(&["rm", NAME]));
    assert_eq!(
        (code, err.as_str()),
        (Some(1), "mynah: `org/model` is not in the cache; `mynah models` lists its models\n")
    );
}

#[test]
fn the_command_names_what_the_hub_refuses() {
    let mut repository = sharded(&[MB]);
    (repository.gated, repository.token) = (true, Some("hf_right".into()));
    let hub = Hub::new(repository);
    let mut wrong = hub.command(&["download", NAME]);
    wrong.env("HF_TOKEN", "hf_wrong");
    let (code, out, err) = run(wrong);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains(&format!("{}/{NAME}", hub.server.endpoint())), "{err}");
    assert!(err.lines().count() == 1 && !err.contains("hf_wrong"), "{err}");
    let mut right = hub.command(&["download", "-vv", NAME]);
    right.env("HF_TOKEN", "hf_right");
    let (code, _, err) = run(right);
    assert_eq!(code, Some(0), "{err}");
    assert!(!err.contains("hf_right"), "{err}");
    hub.check();
}

/// Runs a program of Python's huggingface_hub on the same cache; what it prints.
fn python(hub: &Hub, endpoint: &str, program: &str) -> String {
    static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| mynah_tests::python("hub"));
    let mut command = hub.surround(Command::new(&*PYTHON));
    command.args(["-c", &format!("from huggingface_hub import *\n{program}")]);
    command.env("HF_ENDPOINT", endpoint).env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    let (code, out, err) = run(command);
    assert_eq!(code, Some(0), "{err}");
    out.trim().into()
}

const UNREACHABLE: &str = "http://127.0.0.1:9";

#[test]
fn python_opens_what_we_fetched() {
    let hub = Hub::new(sharded(&[10 * MB, MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Slow(10 * MB));
    hub.fetch_until(|progress| progress.share() > 0.3);
    let scan = "cache = scan_cache_dir()\nprint([str(w) for w in cache.warnings])";
    assert_eq!(python(&hub, UNREACHABLE, scan), "[]");
    hub.server.heal();
    hub.fetch().unwrap();

    let open = "print(snapshot_download('org/model', local_files_only=True))";
    // Python follows the links above its cache.
    let snapshot = hub.snapshot().canonicalize().unwrap();
    assert_eq!(Path::new(&python(&hub, UNREACHABLE, open)), snapshot);
    let open = "print(hf_hub_download('org/model', 'additional_chat_templates/tool_use.jinja', \
        local_files_only=True))";
    let file = snapshot.join("additional_chat_templates/tool_use.jinja");
    assert_eq!(Path::new(&python(&hub, UNREACHABLE, open)), file);
    let scan = "cache = scan_cache_dir()\n\
        [repo] = cache.repos\n[revision] = repo.revisions\n\
        print(len(cache.warnings), repo.repo_id, revision.commit_hash, *revision.refs,\n\
            revision.size_on_disk, len(revision.files))";
    let needed = hub.repository.files.iter().filter(|(name, _)| is_needed(name));
    let (count, bytes) = needed.fold((0, 0), |(n, bytes), (_, file)| (n + 1, bytes + file.size));
    // Files that hold the same share their bytes.
    let bytes = bytes - hub.repository.files["generation_config.json"].size;
    let expected = format!("0 org/model {} main {bytes} {count}", hub.commit);
    assert_eq!(python(&hub, UNREACHABLE, scan), expected);

    // Nor does Python fetch again what is there.
    hub.server.forget();
    let fetch = "print(snapshot_download('org/model'))";
    python(&hub, &hub.server.endpoint(), fetch);
    assert!(hub.storage().is_empty());
}

#[test]
fn we_open_what_python_fetched() {
    let hub = Hub::new(sharded(&[10 * MB, MB]));
    let endpoint = hub.server.endpoint();
    let part = "snapshot_download('org/model', allow_patterns=['*.json', '*1-of-*.safetensors'])";
    python(&hub, &endpoint, part);
    let offline = || block_on(download(&hub.source().offline(), |_| ()));
    assert!(matches!(offline(), Err(Error::Offline { .. })));
    let [model] = &hub::list(hub.cache.path()).unwrap()[..] else { panic!("one model") };
    assert!(!model.revisions[0].complete);

    python(&hub, &endpoint, "snapshot_download('org/model')");
    hub.server.forget();
    assert_eq!(offline().unwrap(), hub.snapshot());
    let pinned = hub.source_of(&format!("{NAME}@{}", hub.commit));
    assert_eq!(block_on(download(&pinned, |_| ())).unwrap(), hub.snapshot());
    assert_eq!(hub.server.requests().len(), 0);
    let [model] = &hub::list(hub.cache.path()).unwrap()[..] else { panic!("one model") };
    assert!(model.revisions[0].complete);
    assert_eq!(model.revisions[0].names, ["main"]);
    hub.fetch().unwrap();
    assert_eq!(hub.server.requests().len(), 1);
}

#[test]
fn we_and_python_fetch_at_once_and_nothing_twice() {
    let hub = Hub::new(sharded(&[20 * MB, 20 * MB]));
    hub.server.fail("/storage/", usize::MAX, Fault::Slow(20 * MB));
    thread::scope(|scope| {
        let fetch = "snapshot_download('org/model', allow_patterns=['*.json', '*.safetensors'])";
        scope.spawn(|| python(&hub, &hub.server.endpoint(), fetch));
        wait("Python's first file", || !hub.storage().is_empty());
        hub.fetch().unwrap();
    });
    for (name, file) in hub.repository.files.iter().filter(|(name, _)| is_needed(name)) {
        assert!(file.content.is_in(&hub.snapshot().join(name)).unwrap(), "{name}");
    }
    assert_eq!(sent_twice(&hub.server.requests()), 0);
}
