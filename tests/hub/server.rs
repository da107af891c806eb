//! A model hub on loopback that can fail in every way that a network can, and that remembers what it
//! was asked. It speaks HTTP/1.1; large files are kept by a second host, which is another port.

use super::content::{Content, File, Repository};
use serde_json::{Value as Json, json};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What goes wrong with a request.
#[derive(Clone)]
pub enum Fault {
    /// Answered with a status, headers and a body that have nothing to do with the file.
    Answer(u16, &'static [(&'static str, &'static str)], &'static str),
    /// The connection ends after so many bytes of the body.
    Drop(u64),
    /// Nothing comes after so many bytes of the body, and the connection stays.
    Stall(u64),
    /// A bit of the byte at this place of the file is wrong.
    Corrupt(u64),
    /// The whole file comes, whatever range was asked for.
    NoRanges,
    /// The range that was asked for comes, and the answer does not say which it is.
    Unstated,
    /// The range that comes begins so many bytes later, and says so.
    Shifted(u64),
    /// The body has no length and never ends.
    Endless,
    /// So many bytes a second on each connection.
    Slow(u64),
    /// Before it is answered, another state of a repository is published as `main`.
    Publish(&'static str, Repository),
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The connection it came on.
    pub connection: usize,
    /// The port it came to.
    pub port: u16,
    /// Whether it came as to a proxy.
    pub proxied: bool,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The headers, their names in lower case.
    pub headers: HashMap<String, String>,
    /// The status of the answer.
    pub status: u16,
    /// What of the file was sent.
    pub sent: Range<u64>,
    /// When it came.
    pub at: Instant,
}

impl Request {
    /// The token that came along.
    pub fn token(&self) -> Option<&str> {
        self.headers.get("authorization")?.strip_prefix("Bearer ")
    }

    /// Whether it is one for the contents of a large file.
    pub fn is_storage(&self) -> bool {
        self.path.starts_with("/storage/")
    }
}

struct Rule {
    path: String,
    remaining: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    /// All states of each repository, by commit.
    commits: HashMap<String, BTreeMap<String, Repository>>,
    /// The commit of each branch.
    branches: HashMap<(String, String), String>,
    /// Large files by hash.
    storage: HashMap<String, Content>,
    rules: Vec<Rule>,
    log: Vec<Request>,
    connections: HashMap<usize, TcpStream>,
}

struct Shared {
    state: Mutex<State>,
    closed: AtomicBool,
    hub: u16,
    storage: u16,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hub that serves until it is dropped.
pub struct Server(Arc<Shared>);

impl Server {
    /// A hub without repositories.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start() -> io::Result<Self> {
        let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [hub, storage] = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
        let state = Mutex::default();
        let shared = Arc::new(Shared { state, closed: AtomicBool::new(false), hub, storage });
        for listener in listeners {
            let shared = shared.clone();
            thread::spawn(move || accept(&listener, &shared));
        }
        Ok(Server(shared))
    }

    /// The address to give as the endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.hub)
    }

    /// The port of the host that keeps large files.
    pub fn storage_port(&self) -> u16 {
        self.0.storage
    }

    /// Makes this the newest state of a repository's `main`; returns its commit.
    pub fn publish(&self, name: &str, repository: &Repository) -> String {
        self.0.state().publish(name, repository)
    }

    /// Gives the newest state of a repository's `main` another name.
    pub fn tag(&self, name: &str, revision: &str) {
        let mut state = self.0.state();
        let commit = state.branches[&(name.to_string(), "main".to_string())].clone();
        state.branches.insert((name.into(), revision.into()), commit);
    }

    /// Makes the next so many requests fail whose path holds `path`.
    pub fn fail(&self, path: &str, times: usize, fault: Fault) {
        self.0.state().rules.push(Rule { path: path.into(), remaining: times, fault });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.0.state().rules.clear();
    }

    /// What was asked since the last [`Server::forget`].
    pub fn requests(&self) -> Vec<Request> {
        self.0.state().log.clone()
    }

    /// Clears the log.
    pub fn forget(&self) {
        self.0.state().log.clear();
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.0.state().connections.len()
    }

    /// Ends all connections that are open.
    pub fn cut(&self) {
        for connection in self.0.state().connections.values() {
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.cut();
        for port in [self.0.hub, self.0.storage] {
            // Wakes the thread that accepts.
            TcpStream::connect(("127.0.0.1", port)).ok();
        }
    }
}

impl State {
    fn publish(&mut self, name: &str, repository: &Repository) -> String {
        let commit = repository.commit();
        for file in repository.files.values().filter(|file| file.lfs) {
            self.storage.insert(file.id.clone(), file.content.clone());
        }
        let commits = self.commits.entry(name.into()).or_default();
        commits.insert(commit.clone(), repository.clone());
        self.branches.insert((name.into(), "main".into()), commit.clone());
        commit
    }

    /// The first fault that waits for this path.
    fn fault(&mut self, path: &str) -> Option<Fault> {
        let waits = |rule: &&mut Rule| rule.remaining > 0 && path.contains(&rule.path);
        let rule = self.rules.iter_mut().find(waits)?;
        rule.remaining -= 1;
        Some(rule.fault.clone())
    }

    fn find(&self, name: &str, revision: &str) -> Option<(&str, &Repository)> {
        let branch = self.branches.get(&(name.to_string(), revision.to_string()));
        let commit = branch.map_or(revision, String::as_str);
        let (commit, repository) = self.commits.get(name)?.get_key_value(commit)?;
        Some((commit, repository))
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    for stream in listener.incoming().map_while(Result::ok) {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        let connection = NEXT.fetch_add(1, Ordering::Relaxed);
        let Ok(other) = stream.try_clone() else { continue };
        shared.state().connections.insert(connection, other);
        let shared = shared.clone();
        thread::spawn(move || {
            // A client that goes away is what many tests are about.
            serve(&stream, connection, &shared).ok();
            stream.shutdown(Shutdown::Both).ok();
            shared.state().connections.remove(&connection);
        });
    }
}

/// Answers the requests of a connection until one of them ends it.
fn serve(stream: &TcpStream, connection: usize, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let port = stream.local_addr()?.port();
    let mut reader = BufReader::new(stream);
    let mut proxied = reader.fill_buf()?.first() == Some(&5);
    if proxied {
        greet_as_socks(&mut reader, stream)?;
    }
    while let Some(mut request) = read(&mut reader)? {
        if request.method == "CONNECT" {
            proxied = true;
            (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            continue;
        }
        if let Some((_, path)) =
            request.path.strip_prefix("http://").and_then(|p| p.split_once('/'))
        {
            (request.proxied, request.path) = (true, format!("/{path}"));
        }
        request.proxied |= proxied;
        (request.connection, request.port) = (connection, port);
        let fault = shared.state().fault(&request.path);
        if let Some(Fault::Publish(name, repository)) = &fault {
            shared.state().publish(name, repository);
        }
        let mut answer = match &fault {
            Some(Fault::Answer(status, headers, body)) => {
                let headers = headers.iter().map(|(name, value)| (*name, value.to_string()));
                Answer::new(*status, headers.collect(), body)
            }
            _ => answer(&request, shared),
        };
        answer.narrow(&request, &fault);
        request.status = answer.status;
        request.sent = answer.range.start..answer.range.start;
        let index = {
            let mut state = shared.state();
            state.log.push(request.clone());
            state.log.len() - 1
        };
        let sent = |end| {
            // The log may have been cleared meanwhile.
            if let Some(request) = shared.state().log.get_mut(index) {
                request.sent.end = request.sent.end.max(end);
            }
        };
        answer.send(&request, stream, &fault, sent)?;
    }
    Ok(())
}

/// Says yes to whatever a client asks of a SOCKS 5 proxy (RFC 1928); all hosts are this one.
fn greet_as_socks(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> io::Result<()> {
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        reader.read_exact(&mut bytes).map(|()| bytes)
    };
    let methods = take(2)?[1];
    take(methods.into())?;
    stream.write_all(&[5, 0])?;
    let address = match take(4)?[3] {
        1 => 4,
        4 => 16,
        _ => take(1)?[0].into(),
    };
    take(address + 2)?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
}

/// The next request of a connection; `None` at its end.
fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_string);
    let mut word = || words.next().ok_or(io::ErrorKind::InvalidData);
    let (method, path) = (word()?, word()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    Ok(Some(Request {
        connection: 0,
        port: 0,
        proxied: false,
        method,
        path,
        headers,
        status: 0,
        sent: 0..0,
        at: Instant::now(),
    }))
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    content: Content,
    /// What of the content is sent.
    range: Range<u64>,
}

impl Answer {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Self {
        let content = Content::bytes(body);
        Answer { status, headers, range: 0..content.size(), content }
    }

    fn json(body: &Json) -> Self {
        Answer::new(200, vec![("Content-Type", "application/json".into())], &body.to_string())
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let headers = vec![("X-Error-Code", code.into()), ("X-Error-Message", message.into())];
        Answer::new(status, headers, &json!({ "error": message }).to_string())
    }

    /// A file that can be had in ranges.
    fn file(content: &Content, etag: String) -> Self {
        let headers = vec![
            ("Content-Type", "application/octet-stream".into()),
            ("Accept-Ranges", "bytes".into()),
            ("ETag", etag),
        ];
        Answer { status: 200, headers, content: content.clone(), range: 0..content.size() }
    }

    fn has(&self, name: &str) -> Option<&String> {
        self.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Keeps the range that was asked for.
    fn narrow(&mut self, request: &Request, fault: &Option<Fault>) {
        if self.status != 200 || self.has("Accept-Ranges").is_none() {
            return;
        }
        if matches!(fault, Some(Fault::NoRanges)) {
            self.headers.retain(|(name, _)| *name != "Accept-Ranges");
            return;
        }
        let unchanged = request.headers.get("if-range").is_none_or(|e| Some(e) == self.has("ETag"));
        let asked = request.headers.get("range").filter(|_| unchanged);
        let Some(asked) = asked.and_then(|range| range.strip_prefix("bytes=")) else { return };
        let size = self.content.size();
        let (first, last) = asked.split_once('-').unwrap_or((asked, ""));
        let end = last.parse::<u64>().map_or(size, |last| size.min(last.saturating_add(1)));
        match first.parse::<u64>() {
            Ok(start) if start < end => {
                let shift = if let Some(Fault::Shifted(by)) = fault { *by } else { 0 };
                (self.status, self.range) = (206, (start + shift).min(end)..end);
                if !matches!(fault, Some(Fault::Unstated)) {
                    let range = format!("bytes {}-{}/{size}", self.range.start, end - 1);
                    self.headers.push(("Content-Range", range));
                }
            }
            _ => {
                (self.status, self.range) = (416, 0..0);
                self.headers.push(("Content-Range", format!("bytes */{size}")));
            }
        }
    }

    fn send(
        &self,
        request: &Request,
        mut stream: &TcpStream,
        fault: &Option<Fault>,
        sent: impl Fn(u64),
    ) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} -\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if matches!(fault, Some(Fault::Endless)) {
            stream.write_all((head + "Connection: close\r\n\r\n").as_bytes())?;
            loop {
                stream.write_all(&[b' '; 1 << 16])?;
            }
        }
        head += &format!("Content-Length: {}\r\n\r\n", self.range.end - self.range.start);
        stream.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        let start = self.range.start;
        let end = match fault {
            Some(Fault::Drop(count) | Fault::Stall(count)) => self.range.end.min(start + count),
            _ => self.range.end,
        };
        self.content.pieces(start..end, |offset, piece| {
            let end = offset + piece.len() as u64;
            match fault {
                Some(Fault::Corrupt(at)) if (offset..end).contains(at) => {
                    piece[(at - offset) as usize] ^= 1;
                }
                Some(Fault::Slow(rate)) => {
                    thread::sleep(Duration::from_secs_f64(piece.len() as f64 / *rate as f64));
                }
                _ => {}
            }
            stream.write_all(piece)?;
            sent(end);
            io::Result::Ok(())
        })?;
        match fault {
            Some(Fault::Drop(_)) => Err(io::ErrorKind::ConnectionAborted.into()),
            // The client, or the end of the server, ends this.
            Some(Fault::Stall(_)) => stream.peek(&mut [0]).map(drop),
            _ => Ok(()),
        }
    }
}

/// What a hub without faults says.
fn answer(request: &Request, shared: &Shared) -> Answer {
    let state = shared.state();
    let path = request.path.split('?').next().unwrap_or_default();
    let words: Vec<_> = path.trim_start_matches('/').split('/').map(decoded).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["storage", hash] => match state.storage.get(hash) {
            // Another than the hub's, as it is with real storage.
            Some(content) => Answer::file(content, format!("\"{}-stored\"", &hash[..16])),
            None => Answer::new(403, Vec::new(), "<Error><Code>AccessDenied</Code></Error>"),
        },
        ["api", "models", org, name, "revision", revision] => {
            in_repository(&state, request, &format!("{org}/{name}"), revision, listing)
        }
        ["api", "models", org, name] => {
            in_repository(&state, request, &format!("{org}/{name}"), "main", listing)
        }
        ["api", "models", org, name, "tree", revision] => {
            in_repository(&state, request, &format!("{org}/{name}"), revision, tree)
        }
        ["api", "resolve-cache", "models", org, name, commit, ref file @ ..] => {
            let file = file.join("/");
            let id = format!("{org}/{name}");
            in_repository(&state, request, &id, commit, |_, commit, repository| {
                match repository.files.get(&file) {
                    Some(file) => {
                        let mut answer = Answer::file(&file.content, format!("\"{}\"", file.id));
                        answer.headers.push(("X-Repo-Commit", commit.into()));
                        answer
                    }
                    None => Answer::error(404, "EntryNotFound", "Entry not found"),
                }
            })
        }
        [org, name, "resolve", revision, ref file @ ..] => {
            let (id, file) = (format!("{org}/{name}"), file.join("/"));
            in_repository(&state, request, &id, revision, |_, commit, repository| match repository
                .files
                .get(&file)
            {
                Some(found) => resolve(shared, (&id, commit), (&file, found)),
                None => Answer::error(404, "EntryNotFound", "Entry not found"),
            })
        }
        _ => Answer::new(404, vec![("Content-Type", "text/html".into())], "<html>404</html>"),
    }
}

fn decoded(word: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Finds a repository for whom may see it; else says what the hub says.
fn in_repository(
    state: &State,
    request: &Request,
    id: &str,
    revision: &str,
    found: impl FnOnce(&str, &str, &Repository) -> Answer,
) -> Answer {
    // The hub does not tell strangers what exists.
    let hidden = || match request.token() {
        None => Answer::error(401, "RepoNotFound", "Invalid username or password."),
        Some(_) => Answer::error(404, "RepoNotFound", "Repository not found"),
    };
    if !state.commits.contains_key(id) {
        return hidden();
    }
    let Some((commit, repository)) = state.find(id, revision) else {
        let message = format!("Invalid rev id: {revision}");
        return Answer::error(404, "RevisionNotFound", &message);
    };
    let is_listing = request.path.starts_with("/api/models/");
    match (&repository.token, request.token()) {
        (Some(token), given) if given != Some(token) => match (repository.gated, given) {
            // The hub shows everybody what a gated repository holds.
            (true, _) if is_listing => found(id, commit, repository),
            (true, None) => {
                let message = format!("Access to model {id} is restricted. Please log in.");
                Answer::error(401, "GatedRepo", &message)
            }
            (true, Some(_)) => {
                let message = format!(
                    "Access to model {id} is restricted. Visit the page to ask for access."
                );
                Answer::error(403, "GatedRepo", &message)
            }
            (false, _) => hidden(),
        },
        _ => found(id, commit, repository),
    }
}

fn listing(id: &str, commit: &str, repository: &Repository) -> Answer {
    let sibling = |(name, file): (&String, &File)| {
        if repository.is_bare {
            return json!({ "rfilename": name });
        }
        let mut sibling = json!({"rfilename": name, "size": file.size});
        if file.lfs {
            sibling["blobId"] = json!(Content::bytes(file.id.as_str()).git_sha1());
            sibling["lfs"] = json!({"sha256": file.id, "size": file.size, "pointerSize": 134});
        } else {
            sibling["blobId"] = json!(file.id);
        }
        sibling
    };
    Answer::json(&json!({
        "id": id, "modelId": id, "sha": commit, "private": false, "disabled": false,
        "gated": if repository.gated { json!("manual") } else { json!(false) },
        "tags": [], "downloads": 0, "likes": 0,
        "siblings": repository.files.iter().map(sibling).collect::<Vec<_>>(),
    }))
}

fn tree(_: &str, _: &str, repository: &Repository) -> Answer {
    let entry = |(name, file): (&String, &File)| {
        let mut entry = json!({"type": "file", "path": name, "size": file.size, "oid": file.id});
        if file.lfs {
            entry["lfs"] = json!({"oid": file.id, "size": file.size, "pointerSize": 134});
        }
        entry
    };
    Answer::json(&repository.files.iter().map(entry).collect())
}

/// Large files are elsewhere; small ones at another path of the same host.
fn resolve(shared: &Shared, (id, commit): (&str, &str), (name, file): (&str, &File)) -> Answer {
    let location = if file.lfs {
        format!("http://127.0.0.1:{}/storage/{}?signature=0", shared.storage, file.id)
    } else {
        format!("/api/resolve-cache/models/{id}/{commit}/{name}")
    };
    let etag = format!("\"{}\"", file.id);
    let mut headers = vec![
        ("Location", location),
        ("X-Repo-Commit", commit.into()),
        ("X-Linked-Size", file.size.to_string()),
        ("X-Linked-Etag", etag.clone()),
        ("Accept-Ranges", "bytes".into()),
    ];
    if !file.lfs {
        headers.push(("ETag", etag));
    }
    Answer::new(if file.lfs { 302 } else { 307 }, headers, "")
}
