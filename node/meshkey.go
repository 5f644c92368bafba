package node

import "github.com/volant-edge/volant/mesh"

// meshKey is the public key of this server in the mesh, which is made at the first start.
func (s *server) meshKey() (string, error) {
	keys, err := mesh.OpenKeys(s.dir)
	if err != nil {
		return "", err
	}
	return keys.Use.Public().String(), nil
}
