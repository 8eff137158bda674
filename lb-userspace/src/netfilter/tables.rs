//! Tables of nf_tables (linux/netfilter/nf_tables.h): ours, and kube-proxy's.
//!
//! The kernel translates established flows only while some chain of type nat is registered,
//! and tracks connections only while some rule asks for it. kube-proxy's rules may be the only
//! ones that do: when its table goes, so do its flows. [`TABLE`] is one chain of type nat, for
//! which one is enough to have all four hooks of both families registered, and one rule that
//! looks at the state of connections and does nothing.

use super::wire::{
    AF_INET, AF_INET6, AF_UNSPEC, Attributes, Channel, Message, NLM_F_APPEND, NLM_F_CREATE, TABLES,
};
use std::io;

/// Our table's name, of family inet.
pub const TABLE: &str = "weir-takeover";
const CHAIN: &str = "keep-translating";
const COMMENT: &str = "open connections of kube-proxy's live on while this is here";

const NFPROTO_INET: u8 = 1;
const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_GETCHAIN: u8 = 4;
const NFT_MSG_NEWRULE: u8 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NF_INET_POST_ROUTING: u32 = 4;
/// `srcnat`.
const PRIORITY: u32 = 100;
const NFT_REG_1: u32 = 1;
const NFT_CT_STATE: u32 = 0;

/// The table of kube-proxy's nftables mode, of families ip and ip6.
const KUBE_PROXY: &str = "kube-proxy";
/// Table and chain that its iptables mode begins with, as iptables-nft keeps them.
const KUBE_SERVICES: (&str, &str) = ("nat", "KUBE-SERVICES");

fn table(kind: u8) -> Message {
    let name = Attributes::default().text(NFTA_TABLE_NAME, TABLE);
    Message::new(TABLES, kind, NFPROTO_INET, name)
}

pub(super) fn held(channel: &mut Channel) -> io::Result<bool> {
    channel.exists(table(NFT_MSG_GETTABLE))
}

pub(super) fn make(channel: &mut Channel) -> io::Result<()> {
    let hook = Attributes::default()
        .be32(NFTA_HOOK_HOOKNUM, NF_INET_POST_ROUTING)
        .be32(NFTA_HOOK_PRIORITY, PRIORITY);
    let chain = Attributes::default()
        .text(NFTA_CHAIN_TABLE, TABLE)
        .text(NFTA_CHAIN_NAME, CHAIN)
        .nested(NFTA_CHAIN_HOOK, hook)
        .text(NFTA_CHAIN_TYPE, "nat");
    let state = Attributes::default().be32(NFTA_CT_DREG, NFT_REG_1).be32(NFTA_CT_KEY, NFT_CT_STATE);
    let state = Attributes::default().text(NFTA_EXPR_NAME, "ct").nested(NFTA_EXPR_DATA, state);
    let rule = Attributes::default()
        .text(NFTA_RULE_TABLE, TABLE)
        .text(NFTA_RULE_CHAIN, CHAIN)
        .nested(NFTA_RULE_EXPRESSIONS, Attributes::default().nested(NFTA_LIST_ELEM, state))
        .bytes(NFTA_RULE_USERDATA, &comment());
    let create = |kind, attributes| Message::new(TABLES, kind, NFPROTO_INET, attributes).with(NLM_F_CREATE);
    channel.batch(
        TABLES,
        vec![
            table(NFT_MSG_NEWTABLE).with(NLM_F_CREATE),
            create(NFT_MSG_NEWCHAIN, chain),
            create(NFT_MSG_NEWRULE, rule).with(NLM_F_APPEND),
        ],
    )
}

pub(super) fn remove(channel: &mut Channel) -> io::Result<()> {
    channel.batch(TABLES, vec![table(NFT_MSG_DELTABLE)])
}

/// How `nft` keeps a rule's comment: type 0, length, text with its final zero.
fn comment() -> Vec<u8> {
    let mut bytes = vec![0, COMMENT.len() as u8 + 1];
    bytes.extend(COMMENT.as_bytes());
    bytes.push(0);
    bytes
}

pub(super) fn kube_proxy(channel: &mut Channel) -> io::Result<Vec<String>> {
    let all = Message::new(TABLES, NFT_MSG_GETTABLE, AF_UNSPEC, Attributes::default());
    let mut found = channel.dump(&all, |family, table| {
        let ours = table.text(NFTA_TABLE_NAME) == Some(KUBE_PROXY);
        ours.then(|| format!("table {} {KUBE_PROXY}", spell(family)))
    })?;
    for family in [AF_INET, AF_INET6] {
        let (table, chain) = KUBE_SERVICES;
        let name = Attributes::default().text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, chain);
        if channel.exists(Message::new(TABLES, NFT_MSG_GETCHAIN, family, name))? {
            found.push(format!("chain {} {table} {chain}", spell(family)));
        }
    }
    Ok(found)
}

fn spell(family: u8) -> &'static str {
    if family == AF_INET6 { "ip6" } else { "ip" }
}
