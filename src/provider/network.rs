//! The addresses that a provider may be called at: the URL is checked before sending, and the
//! resolved address again at dial time, so that no name can lead inside.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde::Deserialize;
use url::{Host, Url};

/// The addresses that a provider may be called at.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Network {
    /// This machine: `http` too, any port. For simulators.
    Loopback,
    /// Hosts of a network that is not public: `https`, any port.
    Private {
        /// The names or addresses that may be called.
        hosts: Vec<String>,
        /// The networks of those hosts.
        networks: Vec<Subnet>,
    },
    /// The internet: `https` on port 443.
    #[default]
    Public,
}

/// An address does not lie in the provider's network.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutOfBounds(&'static str);

impl Network {
    /// Checks the parts of a URL that need no name server: scheme, port, and a host that is an
    /// address.
    pub fn check(&self, url: &Url) -> Result<(), OutOfBounds> {
        let (https_only, standard_port) = match self {
            Self::Loopback => (false, false),
            Self::Private { .. } => (true, false),
            Self::Public => (true, true),
        };
        if https_only && url.scheme() != "https" || !matches!(url.scheme(), "http" | "https") {
            return Err(OutOfBounds("only https is allowed in this network"));
        }
        if standard_port && url.port_or_known_default() != Some(443) {
            return Err(OutOfBounds("only port 443 is allowed in a public network"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(OutOfBounds("no user name or password may stand in the URL"));
        }
        if let Self::Private { hosts, .. } = self
            && !url.host_str().is_some_and(|host| hosts.iter().any(|known| known == host))
        {
            return Err(OutOfBounds("the host is not listed in `network.private.hosts`"));
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::from(address),
            Some(Host::Ipv6(address)) => IpAddr::from(address),
            Some(Host::Domain(name)) if *self == Self::Public && is_localhost(name) => {
                return Err(OutOfBounds("the host is this machine, not a public one"));
            }
            Some(Host::Domain(_)) => return Ok(()),
            None => return Err(OutOfBounds("the URL has no host")),
        };
        if self.admits(address) {
            Ok(())
        } else {
            Err(OutOfBounds("the address is not in the provider's network"))
        }
    }

    /// True if an address may be dialled.
    pub fn admits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Self::Loopback => address.is_loopback(),
            Self::Private { networks, .. } => networks.iter().any(|net| net.0.contains(&address)),
            Self::Public => match address {
                IpAddr::V4(address) => is_public_v4(address),
                IpAddr::V6(address) => is_public_v6(address),
            },
        }
    }
}

/// True for a name of this machine, regardless of name servers (RFC 6761 section 6.3).
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

impl Network {
    /// The addresses of a name, if there are any and all of them lie in the network: one inside does
    /// not excuse another outside, which an honest name does not have.
    fn only_inside(&self, found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let outside = found.iter().any(|address| !self.admits(address.ip()));
        if outside || found.is_empty() {
            return Err(io::Error::other("the name has no address in this network"));
        }
        Ok(found)
    }
}

/// Resolves names for one network, and forgets every address that lies outside it.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Arc<Network>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let network = Arc::clone(&self.0);
        Box::pin(async move {
            let found: Vec<SocketAddr> = if is_localhost(name.as_str()) {
                vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()]
            } else {
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect()
            };
            let found = network.only_inside(found).map_err(Box::new)?;
            // The checked addresses are the dialled ones: the name is not resolved again.
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// True for an IPv4 address of the public internet (the IANA special-purpose registry).
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared by carriers (RFC 6598), where clouds also keep metadata.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19)))
}

/// True for an IPv6 address of the public internet: global unicast, without the parts that are
/// reserved or carry an IPv4 address.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, ..] = address.segments();
    let global_unicast = (0x2000..0x4000).contains(&a);
    let ietf = a == 0x2001 && b < 0x0200;
    let documentation = (a == 0x2001 && b == 0x0db8) || (a == 0x3fff && b < 0x1000);
    let six_to_four = a == 0x2002;
    let segment_routing = a == 0x5f00;
    let direct_as112 = a == 0x2620 && b == 0x004f && c == 0x8000;
    global_unicast && !(ietf || documentation || six_to_four || segment_routing || direct_as112)
}

/// A range of addresses, written `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Subnet(IpNet);

/// A text is not a range of addresses.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a range of addresses: write it as 10.0.0.0/8")]
pub struct NotASubnet(String);

impl TryFrom<String> for Subnet {
    type Error = NotASubnet;

    /// The address is read by the standard library: ipnet takes `010.0.0.1` for an address, too.
    fn try_from(text: String) -> Result<Self, NotASubnet> {
        let net = text
            .split_once('/')
            .and_then(|(base, bits)| IpNet::new(base.parse().ok()?, bits.parse().ok()?).ok());
        net.map(Self).ok_or(NotASubnet(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Result<Subnet, NotASubnet> {
        text.to_owned().try_into()
    }

    fn private() -> Network {
        Network::Private {
            hosts: vec!["sso.internal".to_owned(), "10.1.2.3".to_owned()],
            networks: vec![subnet("10.0.0.0/8").unwrap(), subnet("fd00::/8").unwrap()],
        }
    }

    fn check(network: &Network, url: &str) -> bool {
        network.check(&Url::parse(url).unwrap()).is_ok()
    }

    #[test]
    fn the_public_network_has_no_special_address_in_it() {
        for inside in ["8.8.8.8", "1.1.1.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"] {
            assert!(Network::Public.admits(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!Network::Public.admits(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn the_public_network_is_https_on_443_and_no_literal_inside() {
        assert!(check(&Network::Public, "https://api.avito.ru/token"));
        assert!(check(&Network::Public, "https://8.8.8.8/"));
        for bad in [
            "http://api.avito.ru/",
            "https://api.avito.ru:8443/",
            "https://user@api.avito.ru/",
            "https://localhost/",
            "https://demo.localhost./",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://127.0.0.1./",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/",
        ] {
            assert!(!check(&Network::Public, bad), "{bad}");
        }
    }

    #[test]
    fn the_loopback_network_is_this_machine_on_any_port() {
        for good in ["http://127.0.0.1:8080/", "http://localhost:1/", "https://[::1]:9/"] {
            assert!(check(&Network::Loopback, good), "{good}");
        }
        assert!(!check(&Network::Loopback, "http://8.8.8.8/"));
        assert!(!check(&Network::Loopback, "http://10.0.0.1/"));
        assert!(!Network::Loopback.admits("8.8.8.8".parse().unwrap()));
    }

    #[test]
    fn a_private_network_is_what_is_listed() {
        assert!(check(&private(), "https://sso.internal:8443/token"));
        assert!(check(&private(), "https://10.1.2.3/"));
        for bad in ["http://sso.internal/", "https://other.internal/", "https://10.1.2.4/"] {
            assert!(!check(&private(), bad), "{bad}");
        }
        assert!(private().admits("10.200.0.1".parse().unwrap()));
        assert!(private().admits("fd00::1".parse().unwrap()));
        assert!(!private().admits("11.0.0.1".parse().unwrap()));
        assert!(!private().admits("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_subnet_of_all_or_one_address_works() {
        let contains = |net: &str, address: &str| {
            let networks = vec![subnet(net).unwrap()];
            Network::Private { hosts: Vec::new(), networks }.admits(address.parse().unwrap())
        };
        assert!(contains("0.0.0.0/0", "255.1.2.3"));
        assert!(!contains("0.0.0.0/0", "fd00::1"));
        assert!(contains("10.0.0.1/32", "10.0.0.1"));
        assert!(!contains("10.0.0.1/32", "10.0.0.2"));
        let bad = ["", "10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/-1", "010.0.0.0/8"];
        for bad in bad {
            assert!(subnet(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_address_inside_excuses_none_outside() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let public = [at("93.184.215.14"), at("2606:2800:21f:cb07:6820:80da:af6b:8b2c")];
        assert_eq!(Network::Public.only_inside(public.to_vec()).unwrap(), public);
        for inside in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1"] {
            for place in 0..=public.len() {
                let mut found = public.to_vec();
                found.insert(place, at(inside));
                assert!(Network::Public.only_inside(found).is_err(), "{inside} at {place}");
            }
        }
        assert!(Network::Public.only_inside(Vec::new()).is_err());
    }

    #[tokio::test]
    async fn names_under_localhost_are_this_machine_and_a_foreign_answer_is_refused() {
        let resolve = async |network: Network, name: &str| {
            let found = Resolver(Arc::new(network)).resolve(name.parse().unwrap()).await;
            found.map(Iterator::collect::<Vec<_>>)
        };
        let found = resolve(Network::Loopback, "demo.amocrm.localhost").await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
        assert!(resolve(Network::Public, "demo.amocrm.localhost").await.is_err());
        assert!(resolve(Network::Public, "LOCALHOST.").await.is_err());
        assert!(resolve(private(), "localhost").await.is_err());
    }
}
