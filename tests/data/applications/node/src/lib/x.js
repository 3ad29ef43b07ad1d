exports.x="lib"
