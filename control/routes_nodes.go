package control

import (
	"net/http"

	"github.com/volant-edge/volant/api"
)

// nodeRoutes are the servers, and how they come and go. But for the list they are for tokens of every organization.
func (s *Server) nodeRoutes() []Route {
	return []Route{
		at("GET /v1/nodes", scopeAdmin, "node.list", s.listNodes, "List the servers", nil, ok([]api.Node{})),
		at("GET /v1/nodes/{node}", scopeAdmin, "node.get", s.getNode, "Read a server", nil, ok(api.Node{})),
		at("POST /v1/nodes/{node}/drain", scopeAdmin, "node.drain", s.drainNode, "Have a server's machines go elsewhere, and no new ones come", nil, ok(api.Node{})),
		at("POST /v1/nodes/{node}/undrain", scopeAdmin, "node.drain", s.undrainNode, "Let machines come to a server again", nil, ok(api.Node{})),
		at("POST /v1/nodes/{node}/promote", scopeAdmin, "node.promote", s.promoteNode, "Make a server a control node: a member of the intent's store", nil, ok(api.Node{})),
		at("POST /v1/nodes/{node}/demote", scopeAdmin, "node.promote", s.demoteNode, "Make a server a control node no longer", nil, ok(api.Node{})),
		at("POST /v1/nodes/{node}/rotate-key", scopeAdmin, "node.rotate_key", s.rotateNodeKey, "Give a server a new mesh key; no connection is dropped", nil, ok(api.Node{})),
		at("DELETE /v1/nodes/{node}", scopeAdmin, "node.remove", s.removeNode, "Throw a server out for good: its key is refused everywhere", nil, ok(api.RemovedNode{}),
			query("force", "boolean", "though it is alive and has machines, which are lost")),

		at("GET /v1/join-tokens", scopeAdmin, "join_token.list", s.listJoinTokens, "List the tokens by which servers join", nil, ok(api.JoinTokenList{})),
		at("POST /v1/join-tokens", scopeAdmin, "join_token.create", s.createJoinToken, "Create a token by which servers join", api.CreateJoinToken{}, created(api.CreatedJoinToken{})),
		at("DELETE /v1/join-tokens/{token}", scopeAdmin, "join_token.revoke", s.revokeJoinToken, "Revoke a token by which servers join", nil, empty(http.StatusNoContent)),
	}
}
