//! HTTP requests. ureq sends them, unless the application has brought a client: that of the system knows
//! its proxies, VPNs and settings.

use crate::hub::Cancel;
use std::{
    io::{self, Read},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use ureq::{
    Agent,
    http::{Response, Uri, header},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

/// How long a read or a write may take without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The size of a connection's read buffer, in bytes.
pub(super) const BUFFER: usize = 512 << 10;

/// The body of a response, read as it arrives.
pub type HttpBody = Box<dyn Read + Send>;

/// A GET request.
pub struct HttpRequest<'a> {
    /// The address.
    pub url: &'a str,
    /// Names and values of its headers.
    pub headers: &'a [(&'static str, String)],
}

/// A response whose body is still to be read.
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Names and values of its headers.
    pub headers: Vec<(String, String)>,
    /// Dropping it ends the response.
    pub body: HttpBody,
}

/// An HTTP client of the application. It neither follows redirects, since the caller sends the access
/// token to the hub's own host only, nor decompresses, and it ends a request that gets no byte for a while.
pub trait HttpClient: Send + Sync {
    /// Sends a request and returns when the headers of the response have arrived.
    ///
    /// # Errors
    /// Why there is no response. Soon after `cancel` was cancelled, this and reading the body fail.
    fn get(&self, request: &HttpRequest, cancel: &Cancel) -> io::Result<HttpResponse>;
}

static CHOSEN: RwLock<Option<Arc<dyn HttpClient>>> = RwLock::new(None);

/// Sends the requests of later downloads with a client of the application; `None` is the library's own.
pub fn set_http_client(client: Option<Arc<dyn HttpClient>>) {
    *CHOSEN.write().unwrap_or_else(PoisonError::into_inner) = client;
}

/// The client of one download: connections close when `cancel` is cancelled.
pub(super) fn client(cancel: &Cancel) -> Arc<dyn HttpClient> {
    let chosen = CHOSEN.read().unwrap_or_else(PoisonError::into_inner).clone();
    chosen.unwrap_or_else(|| Arc::new(Ureq::new(cancel)))
}

/// Sends a request and returns its response as the crate `http` names it.
pub(super) fn get(
    client: &dyn HttpClient,
    address: &Uri,
    headers: &[(&'static str, String)],
    cancel: &Cancel,
) -> io::Result<Response<HttpBody>> {
    let request = HttpRequest { url: &address.to_string(), headers };
    let response = client.get(&request, cancel)?;
    let mut builder = Response::builder().status(response.status);
    for (name, value) in response.headers {
        builder = builder.header(name, value);
    }
    builder.body(response.body).map_err(io::Error::other)
}

/// The library's own client.
struct Ureq(Agent);

impl Ureq {
    fn new(cancel: &Cancel) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("mynah/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .timeout_per_write(Some(READ_TIMEOUT))
            .max_idle_connections_per_host(8)
            .input_buffer_size(BUFFER)
            .build();
        let agent = Agent::new_with_config(config);
        let cancelled = agent.clone();
        cancel.on_cancel(move || cancelled.shutdown());
        Ureq(agent)
    }
}

impl HttpClient for Ureq {
    fn get(&self, request: &HttpRequest, _: &Cancel) -> io::Result<HttpResponse> {
        let mut builder = self.0.get(request.url);
        for (name, value) in request.headers {
            builder = builder.header(*name, value);
        }
        let response = builder.call().map_err(|error| error.into_io())?;
        let text = |value: &header::HeaderValue| value.to_str().ok().map(str::to_string);
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.to_string(), text(value)?)))
            .collect();
        let status = response.status().as_u16();
        Ok(HttpResponse { status, headers, body: Box::new(response.into_body().into_reader()) })
    }
}
