//! Which node has which store, by the ids in the stores' marks: a copy of a volume is not another part of the cluster.
//!
//! Who calls it: `nodes`, each time that it reaches a node.
//! What it calls: nothing.
//! What it never does: take a store from the node that was heard with it first, also while that one is away. Which of the
//! two is right is for the operator to say.

use std::collections::HashMap;

use parking_lot::Mutex;
use portolan_proto::id::NodeId;
use portolan_proto::mark::StoreId;

use super::{NodeIndex, Role, Snapshot};

/// The store that each node was heard with last.
#[derive(Debug, Default)]
pub(super) struct Stores(Mutex<HashMap<NodeIndex, StoreId>>);

impl Stores {
    /// Notes the store of a node; `None`: it has no mark.
    ///
    /// # Errors
    /// Another node has it, and neither is the other's standby.
    pub(super) fn claim(
        &self,
        node: NodeIndex,
        store: Option<StoreId>,
        snapshot: &Snapshot,
    ) -> Result<(), NodeId> {
        let mut stores = self.0.lock();
        stores.remove(&node);
        let Some(store) = store else { return Ok(()) };
        let is_rival =
            |other: NodeIndex| *snapshot.role(other) != Role::Out && !have_the_same(snapshot, node, other);
        let rivals = stores.iter().filter(|(other, held)| **held == store && is_rival(**other));
        // The same one for as long as nothing changes, so that it is logged once.
        if let Some((holder, _)) = rivals.min_by_key(|(other, _)| **other) {
            return Err(snapshot.name(*holder).clone());
        }
        stores.insert(node, store);
        Ok(())
    }
}

/// One is the other's standby, or both are of one node.
fn have_the_same(snapshot: &Snapshot, one: NodeIndex, other: NodeIndex) -> bool {
    let is_standby = |of, who| snapshot.standbys(of).contains(&who);
    let of_one = |primary| is_standby(primary, one) && is_standby(primary, other);
    is_standby(one, other) || is_standby(other, one) || snapshot.indexes().any(of_one)
}

#[cfg(test)]
mod tests {
    use portolan_config::checked::map::{Map, Placement};

    use super::super::NodeFacts;
    use super::*;

    fn primary(standbys: &[usize]) -> Role {
        let standbys = standbys.iter().copied().map(NodeIndex).collect();
        Role::Primary { standbys, writes: false }
    }

    fn snapshot(roles: Vec<Role>) -> Snapshot {
        let facts = |(rank, role): (usize, Role)| NodeFacts {
            name: format!("n{rank}").parse().unwrap(),
            is_discovered: false,
            role,
            mail_hosts: Vec::new(),
            rank,
        };
        let nodes = roles.into_iter().enumerate().map(facts).collect();
        let map = Map {
            sources: Vec::new(),
            placement: Placement::Refuse,
            mark_partial: false,
            missing_share: 20,
            ldap: None,
            domains: Vec::new(),
        };
        Snapshot::new(nodes, 0, &map)
    }

    fn claim(stores: &Stores, snapshot: &Snapshot, node: usize, bits: Option<u128>) -> Result<(), String> {
        let claimed = stores.claim(NodeIndex(node), bits.map(StoreId::from_bits), snapshot);
        claimed.map_err(|holder| holder.to_string())
    }

    #[test]
    fn a_copy_of_a_store_is_refused_until_one_of_the_two_is_another() {
        let (stores, nodes) = (Stores::default(), snapshot(vec![primary(&[]), primary(&[]), primary(&[])]));
        assert_eq!(claim(&stores, &nodes, 0, Some(1)), Ok(()));
        assert_eq!(claim(&stores, &nodes, 1, Some(1)), Err("n0".to_owned()));
        assert_eq!(claim(&stores, &nodes, 1, Some(1)), Err("n0".to_owned()), "as often as it is tried");
        assert_eq!(claim(&stores, &nodes, 2, Some(2)), Ok(()));
        assert_eq!(claim(&stores, &nodes, 0, Some(1)), Ok(()), "it is heard again");
        assert_eq!(claim(&stores, &nodes, 0, Some(3)), Ok(()));
        assert_eq!(claim(&stores, &nodes, 1, Some(1)), Ok(()));
        assert_eq!(claim(&stores, &nodes, 0, Some(1)), Err("n1".to_owned()));
    }

    #[test]
    fn standbys_have_the_store_of_their_node() {
        let roles = vec![primary(&[1, 2]), Role::Standby, Role::Standby, primary(&[])];
        let (stores, nodes) = (Stores::default(), snapshot(roles));
        for node in [1, 0, 2] {
            assert_eq!(claim(&stores, &nodes, node, Some(1)), Ok(()), "{node}");
        }
        assert!(claim(&stores, &nodes, 3, Some(1)).is_err());
    }

    #[test]
    fn stores_without_a_mark_and_nodes_that_are_taken_out_are_in_nobodys_way() {
        let stores = Stores::default();
        let nodes = snapshot(vec![primary(&[]), primary(&[])]);
        for node in [0, 1] {
            assert_eq!(claim(&stores, &nodes, node, None), Ok(()));
        }
        assert_eq!(claim(&stores, &nodes, 0, Some(1)), Ok(()));
        assert_eq!(claim(&stores, &snapshot(vec![Role::Out, primary(&[])]), 1, Some(1)), Ok(()));
    }
}
