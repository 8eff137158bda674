//! The name servers of `/etc/resolv.conf`.

use super::{Answer, Lookup};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RecordType;
use lb_common::abi::Family;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// After a failure the file is read again, so often at most: it may have been wrong, or another
/// one is there now.
const REREAD: Duration = Duration::from_secs(30);

type Build = dyn Fn() -> Result<TokioResolver, String> + Send + Sync;

/// Asks the name servers that the node is configured with.
pub struct System {
    build: Box<Build>,
    built: Mutex<Option<(Instant, TokioResolver)>>,
}

impl System {
    pub fn new() -> Self {
        let build = || {
            let mut builder = TokioResolver::builder_tokio()?;
            // Every answer is asked for when it is due, and kept elsewhere.
            builder.options_mut().cache_size = 0;
            builder.build()
        };
        Self::built_by(move || build().map_err(|error| format!("/etc/resolv.conf: {error}")))
    }

    fn built_by(build: impl Fn() -> Result<TokioResolver, String> + Send + Sync + 'static) -> Self {
        Self { build: Box::new(build), built: Mutex::new(None) }
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, resolver)) = &*built {
            return Ok(resolver.clone());
        }
        let resolver = (self.build)()?;
        *built = Some((Instant::now(), resolver.clone()));
        Ok(resolver)
    }

    /// The next lookup begins with the file again, unless it was just read.
    fn doubt(&self) {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if built.as_ref().is_some_and(|(at, _)| at.elapsed() >= REREAD) {
            *built = None;
        }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("System").finish_non_exhaustive()
    }
}

impl Lookup for System {
    async fn lookup(&self, name: &str, family: Family) -> Answer {
        let resolver = match self.resolver() {
            Ok(resolver) => resolver,
            Err(error) => return Answer::Failed(error),
        };
        let wanted = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        // With its last dot: an ExternalName is absolute, and no search list applies.
        match resolver.lookup(format!("{name}."), wanted).await {
            Ok(found) => {
                let lasts = found.valid_until().saturating_duration_since(std::time::Instant::now());
                let addresses: Vec<IpAddr> =
                    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
                if addresses.is_empty() {
                    return Answer::Gone("it has no address".into());
                }
                Answer::Found(addresses, lasts)
            }
            Err(error) if error.is_nx_domain() => Answer::Gone("there is no such name".into()),
            Err(error) if error.is_no_records_found() => Answer::Gone("it has no address".into()),
            Err(error) => {
                self.doubt();
                Answer::Failed(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use hickory_resolver::config::{NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::UdpSocket;

    const A: u8 = 1;

    /// A name server: what it answers for A and AAAA, in octets of the address; `None`: nothing.
    async fn serve(socket: UdpSocket, answers: [Option<&'static [u8]>; 2]) {
        let mut query = [0; 512];
        loop {
            let (_, from) = socket.recv_from(&mut query).await.unwrap();
            // The one question begins behind the header: labels up to an empty one, type, class.
            let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            let kind = query[end - 3];
            let Some(address) = answers[usize::from(kind != A)] else { continue };
            let mut answer = vec![query[0], query[1], 0x81, 0x80, 0, 1, 0, u8::from(!address.is_empty())];
            answer.extend([0, 0, 0, 0]);
            answer.extend_from_slice(&query[12..end]);
            if !address.is_empty() {
                answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
                answer.extend_from_slice(address);
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    }

    async fn resolver(answers: [Option<&'static [u8]>; 2]) -> TokioResolver {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut server = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
        server.connections[0].port = socket.local_addr().unwrap().port();
        tokio::spawn(serve(socket, answers));
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().cache_size = 0;
        builder.options_mut().timeout = Duration::from_millis(200);
        builder.options_mut().attempts = 1;
        builder.build().unwrap()
    }

    async fn both(system: &System) -> (Answer, Answer) {
        tokio::join!(system.lookup("a.example", Family::V4), system.lookup("a.example", Family::V6))
    }

    #[tokio::test]
    async fn each_family_has_an_answer_of_its_own() {
        let address: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let found = |text: &str, answer: Answer| {
            let Answer::Found(addresses, lasts) = answer else { panic!("{answer:?}") };
            assert_eq!(addresses, [text.parse::<IpAddr>().unwrap()]);
            assert!(lasts <= Duration::from_secs(60) && lasts > Duration::from_secs(50), "{lasts:?}");
        };
        let given = resolver([Some(&[203, 0, 113, 1]), None]).await;
        let (v4, v6) = both(&System::built_by(move || Ok(given.clone()))).await;
        found("203.0.113.1", v4);
        assert!(matches!(v6, Answer::Failed(_)), "silence is no answer: {v6:?}");
        let given = resolver([Some(&[]), Some(address)]).await;
        let (v4, v6) = both(&System::built_by(move || Ok(given.clone()))).await;
        assert_eq!(v4, Answer::Gone("it has no address".into()));
        found("2001:db8::1", v6);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_read_again() {
        let given = resolver([Some(&[203, 0, 113, 1]), Some(&[])]).await;
        let reads = Arc::new(AtomicUsize::new(0));
        let system = System::built_by({
            let reads = Arc::clone(&reads);
            move || match reads.fetch_add(1, Ordering::Relaxed) {
                0 => Err("no such file".into()),
                _ => Ok(given.clone()),
            }
        });
        let first = system.lookup("a.example", Family::V4).await;
        assert_eq!(first, Answer::Failed("no such file".into()));
        for _ in 0..2 {
            let next = system.lookup("a.example", Family::V4).await;
            assert!(matches!(next, Answer::Found(..)), "{next:?}");
        }
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        // What was read long ago is doubted once nobody answers, what was just read is not.
        system.doubt();
        assert!(system.built.lock().unwrap().is_some());
        system.built.lock().unwrap().as_mut().unwrap().0 -= REREAD;
        system.doubt();
        assert!(matches!(system.lookup("a.example", Family::V4).await, Answer::Found(..)));
        assert_eq!(reads.load(Ordering::Relaxed), 3);
    }
}
